"""LPIPS against torchmetrics', with its heads and one random AlexNet: torchvision's weights are not at hand."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import lpips as theirs
from torchvision.models import alexnet

from dpgan.errors import UserError
from dpgan.evaluation import lpips
from dpgan.evaluation.lpips import BACKBONE, HEADS, Lpips
from dpgan.files import file_sha256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), path / BACKBONE)
    shutil.copy(Path(inspect.getfile(theirs)).parent / "lpips_models" / HEADS, path)
    return path


@pytest.fixture
def ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lpips:
    monkeypatch.setattr(lpips, "BACKBONE_SHA256", file_sha256(folder / BACKBONE))
    return Lpips(folder)


def test_distances_are_those_of_torchmetrics(ours: Lpips, folder: Path) -> None:
    reference = theirs._LPIPS(net="alex", pnet_rand=True)
    backbone = torch.load(folder / BACKBONE, weights_only=True)
    for part in reference.net.children():
        part.load_state_dict({k: backbone[f"features.{k}"] for k in part.state_dict()})
    images = torch.rand(3, 2, 3, 64, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = sum(reference(images[a], images[b]).flatten() for a in range(3) for b in range(a)) / 3
    found = ours.apart(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-7)
    assert found.min() > 0.01
    assert ours.apart(images[[0, 0]]).tolist() == [0, 0]


def test_weights_are_held_to_their_checksums(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"evaluate.lpips: .*{BACKBONE}: no such file; get it from https://download"):
        Lpips(tmp_path)
    with pytest.raises(UserError, match=rf"{BACKBONE} is another file, or damaged: its sha256 is .*, not 7be5be79"):
        Lpips(folder)
    monkeypatch.setattr(lpips, "BACKBONE_SHA256", file_sha256(folder / BACKBONE))
    shutil.copy(folder / BACKBONE, tmp_path)
    (tmp_path / HEADS).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{HEADS} is another file, or damaged"):
        Lpips(tmp_path)


def test_distances_are_computed_without_tf32(ours: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []
    ours.network[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    ours.apart(torch.zeros(2, 1, 3, 64, 64))
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32

"""Checkpoints: exact, complete or not there, never loaded when altered, and never those of something else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.training import checkpoint
from dpgan.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    differences,
    load_state,
    starting_point,
    to_keep,
    write_tensors,
)
from dpgan.training.strategy import flat_state
from dpgan.training.strategy import load_state as load_optimizer

TRAINS = {"settings": {"ema": 0.9, "losses": {"l1": 1.0}}, "seed": 0}


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    # channels_last, as in training: a fused optimizer expects its state in the memory format of the weights
    module = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        advance(module, optimizer)
    return module, optimizer


def advance(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.linspace(-1, 1, 2 * 4 * 5 * 5).view(2, 4, 5, 5)).square().sum().backward()
    optimizer.step()


def state(steps: int) -> dict[str, dict[str, Tensor]]:
    module, optimizer = trained(steps)
    return {"m": dict(module.state_dict()), "o": flat_state(optimizer)}


def make(folder: Path, *images: int, best: int | None = None, **policy: Any) -> Checkpoints:
    """A run's checkpoints after `images` images each, written."""
    checkpoints = Checkpoints(folder, TRAINS, **policy)
    for seen in images:
        checkpoints.save(seen, state(1), best if best is not None and best <= seen else None, {"best": best})
    checkpoints.wait()
    return checkpoints


def newest(checkpoints: Checkpoints) -> Checkpoint:
    found = checkpoints.newest()
    assert found is not None
    return found


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("images_")) for path in folder.iterdir())


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, TRAINS)
    checkpoints.save(3, state(3), None, {})
    checkpoints.wait()
    module, optimizer = trained(0)
    load_state(module, newest(checkpoints).file("m"))
    load_optimizer(optimizer, load_file(newest(checkpoints).file("o")))
    advance(module, optimizer)
    expected, _ = trained(4)
    assert torch.equal(module.weight, expected.weight)


def test_training_may_go_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is the state at the call, in the layout that loads again."""
    module, optimizer = trained(1)
    weight = module.weight.detach().clone()
    blocked: Future[None] = Future()
    write = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: (blocked.result(), write(*a)))
    checkpoints = Checkpoints(tmp_path, TRAINS)
    checkpoints.save(1, {"m": module.state_dict()}, None, {})
    advance(module, optimizer)
    assert checkpoints.newest() is None
    blocked.set_result(None)
    checkpoints.wait()
    load_state(module, newest(checkpoints).file("m"))
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"last": 2}, [40, 50]),
        ({"last": 1, "best": 20}, [20, 50]),
        ({"last": 1, "every": 20}, [20, 40, 50]),
    ],
)
def test_what_is_kept(tmp_path: Path, policy: dict[str, Any], expected: list[int]) -> None:
    checkpoints = make(tmp_path, 10, 20, 30, 40, 50, **policy)
    assert kept(tmp_path) == expected
    assert newest(checkpoints).images == 50


def test_an_altered_checkpoint_is_passed_over_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = make(tmp_path, 1, 2)
    weights = newest(checkpoints).file("m")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert newest(checkpoints).images == 1
    assert "m.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["manifest.json", "m.safetensors", "o.safetensors"])
def test_a_truncated_checkpoint_is_passed_over_loudly(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = make(tmp_path, 1, 2)
    file = newest(checkpoints).path / name
    file.write_bytes(file.read_bytes()[:-20])
    assert newest(checkpoints).images == 1
    assert name in capsys.readouterr().out
    file.unlink()
    assert newest(checkpoints).images == 1


def test_what_was_interrupted_is_never_loaded_and_swept_later(tmp_path: Path) -> None:
    (tmp_path / ".images_000000009.part").mkdir()
    (tmp_path / "images_000000008").mkdir()  # without a manifest
    assert Checkpoints(tmp_path, TRAINS).newest() is None
    checkpoints = make(tmp_path, 9)
    assert not (tmp_path / ".images_000000009.part").exists()
    assert newest(checkpoints).images == 9


ON_A_FULL_DISK = """
import sys
from pathlib import Path
import torch
from dpgan.errors import UserError
from dpgan.training.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]) / "checkpoints", {})
for images, floats in {1: 1_000, 2: 1_000_000}.items():
    checkpoints.save(images, {"m": {"x": torch.zeros(floats)}}, None, {})
    try:
        checkpoints.wait()
    except UserError as error:
        print("told:", error)
print("newest", checkpoints.newest().images, sorted(path.name for path in checkpoints.folder.iterdir()))
"""


def test_a_full_disk_is_reported_and_leaves_the_one_before(tmp_path: Path) -> None:
    """On a file system of 1 MB: safetensors, json and the operating system fail with their own exceptions."""
    mounted = f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c '{ON_A_FULL_DISK}' {tmp_path}"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "No space left on device); the ones before it are whole: make room and run the same" in done.stdout
    assert done.stdout.endswith("newest 1 ['images_000000001']\n")


def test_a_file_that_is_too_large_for_its_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No such file or directory: .*nowhere"):
        write_tensors({"x": torch.zeros(1)}, tmp_path / "nowhere" / "x.safetensors")


@pytest.mark.parametrize(
    ("images", "last", "every", "expected"),
    [
        ([10, 20, 30], 1, 20, {20, 30}),
        ([12, 16, 24, 36], 1, 16, {16, 36}),  # 36 is the first that has reached 32
        ([6, 12, 18, 24], 1, 16, {18, 24}),
        ([18, 30, 36], 1, 16, {18, 36}),  # 24 went before: 30 still stands for nothing
        ([18, 36, 42], 1, 16, {18, 36, 42}),
        ([8], 2, None, {8}),
    ],
)
def test_the_first_one_behind_each_multiple_stays(
    images: list[int], last: int, every: int | None, expected: set[int]
) -> None:
    assert to_keep(images, set(), last, every) == expected
    assert to_keep(images, {images[0], 7}, last, every) == expected | {images[0]}


def test_a_checkpoint_of_something_else_is_refused_with_what_changed(tmp_path: Path) -> None:
    make(tmp_path, 5)
    other: Mapping[str, Any] = {"settings": {"ema": 0.99, "losses": {"l1": 1.0}}, "seed": 0}
    with pytest.raises(UserError, match=r"settings\.ema: 0\.9 -> 0\.99.*fork"):
        starting_point(Checkpoints(tmp_path, other), fork=None)
    assert starting_point(Checkpoints(tmp_path, TRAINS), fork=None) is not None


def test_a_run_is_forked_when_asked(tmp_path: Path) -> None:
    make(tmp_path / "old" / "checkpoints", 5)
    fresh = Checkpoints(tmp_path / "new" / "checkpoints", {"seed": 1})
    assert starting_point(fresh, fork=None) is None
    found = starting_point(fresh, fork=tmp_path / "old")
    assert found is not None
    assert found.images == 5
    with pytest.raises(UserError, match=r"train\.fork .*nowhere: no complete checkpoint"):
        starting_point(fresh, fork=tmp_path / "nowhere")


def test_differences_are_named_by_their_place() -> None:
    now = {"settings": {"ema": 0.9, "losses": {"l1": 2.0}}, "seed": 1}
    assert differences(TRAINS, now) == ["seed: 0 -> 1", "settings.losses.l1: 1.0 -> 2.0"]
    assert differences(TRAINS, TRAINS) == []

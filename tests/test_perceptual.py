"""The perceptual losses, and that VGG-19 comes from its file alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.models import perceptual
from dpgan.models.perceptual import PerceptualLoss, check_vgg19, mobilenet_loss, vgg19_loss


def photos() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_steers_the_fake_alone(loss: PerceptualLoss) -> None:
    real = photos()
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    fake = real.flip(3).requires_grad_()
    assert loss.train()(real, real).item() == 0
    loss(fake, real).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_mobilenet_counts_each_channel_in_its_deviation() -> None:
    loss = mobilenet_loss(photos())
    for feature in loss.features(photos()):
        assert feature.std(dim=(0, 2, 3)).median().item() == pytest.approx(1.0, rel=1e-3)
    assert_steers_the_fake_alone(loss)


def test_taps_are_weighted_and_normalised_by_hand() -> None:
    loss = PerceptualLoss(nn.Sequential(nn.Identity(), nn.Identity()), {0: 1.0, 1: 0.5})
    fake, real = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.5)
    distance = sum(0.5 / std for std in perceptual.STD) / 3  # ((0.5 + 1) - (-0.5 + 1)) / 2, in ImageNet's deviations
    assert loss(fake, real).item() == pytest.approx(1.5 * distance, rel=1e-5)


def test_vgg19_from_a_file_that_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vgg19.pth"
    torch.manual_seed(0)
    weights = {f"features.{k}": v for k, v in make_layers(cfgs["E"]).state_dict().items()}
    torch.save({**weights, "classifier.0.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="another file, or damaged"):
        vgg19_loss(path)
    monkeypatch.setattr(perceptual, "VGG19_SHA256", file_sha256(path))
    loss = vgg19_loss(path)
    assert torch.equal(loss.network[28].weight, weights["features.28.weight"])
    assert [tuple(f.shape[1:]) for f in loss.features(photos())] == [
        (64, 64, 96), (128, 32, 48), (256, 16, 24), (512, 8, 12), (512, 4, 6)
    ]  # fmt: skip
    assert_steers_the_fake_alone(loss)


def test_vgg19_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set run\.vgg19 to its weights; get it from .*vgg19-dcbb9e9d\.pth, or set"):
        check_vgg19(None)
    with pytest.raises(UserError, match=r"no.pth: no such file"):
        check_vgg19(tmp_path / "no.pth")

"""DRN-D-105. Its published weights are not at hand: random ones in their layout stand in."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor

from dpgan.checks import DRN105_SIZES
from dpgan.evaluation.judges import drn
from dpgan.labels import load_card

CARD = load_card("cityscapes", ROOT / "data")


def layout() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of `drn-d-105_ms_cityscapes.pth`, written down from its public code."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(key: str, outputs: int, inputs: int, kernel: int, norm: str) -> None:
        found[f"{key}.weight"] = (outputs, inputs, kernel, kernel)
        found.update({f"{norm}.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")})

    conv("base.0.0", 16, 3, 7, "base.0.1")
    for level, outputs, inputs in ((1, 16, 16), (2, 32, 16), (7, 512, 2048), (8, 512, 512)):
        conv(f"base.{level}.0", outputs, inputs, 3, f"base.{level}.1")
    for level, inner, depth, inputs in ((3, 64, 3, 32), (4, 128, 4, 256), (5, 256, 23, 512), (6, 512, 3, 1024)):
        for block in range(depth):
            at, seen = f"base.{level}.{block}", 4 * inner if block else inputs
            conv(f"{at}.conv1", inner, seen, 1, f"{at}.bn1")
            conv(f"{at}.conv2", inner, inner, 3, f"{at}.bn2")
            conv(f"{at}.conv3", 4 * inner, inner, 1, f"{at}.bn3")
        conv(f"base.{level}.0.downsample.0", 4 * inner, inputs, 1, f"base.{level}.0.downsample.1")
    return found | {"seg.weight": (19, 512, 1, 1), "seg.bias": (19,), "up.weight": (19, 1, 16, 16)}


def test_the_layout_is_that_of_the_published_file() -> None:
    with torch.device("meta"):
        state = drn.DRN105(CARD).state_dict()
        names = [drn.DRN105(CARD, size).name for size in DRN105_SIZES]
    assert names == ["drn105_256", "drn105_1024"]
    assert {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k} == layout()
    learned = sum(math.prod(shape) for key, shape in layout().items() if "base" in key and "running" not in key)
    assert round((learned + 513_000) / 1e6, 1) == 54.8  # the published count, a classifier of ImageNet included


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> drn.DRN105:
    monkeypatch.setattr(drn, "CHANNELS", (2, 3, 4, 5, 6, 7, 8, 9))
    monkeypatch.setattr(drn, "DEPTHS", (1, 1, 2, 2, 2, 2, 1, 1))
    torch.manual_seed(0)
    judge = drn.DRN105(CARD, (64, 128)).eval()
    for name, value in judge.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.3)
    return judge


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as its paper and its public code describe it, from the keys of the file alone."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)
        mean, var, scale, bias = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, bias)

    x = F.relu(step(x, "base.0.0", "base.0.1"))
    x = F.relu(step(x, "base.1.0", "base.1.1"))
    x = F.relu(step(x, "base.2.0", "base.2.1", stride=2))
    for level, stride, dilation in ((3, 2, 1), (4, 2, 1), (5, 1, 2), (6, 1, 4)):
        for block in range(2):
            at, first = f"base.{level}.{block}", block == 0
            y = F.relu(step(x, f"{at}.conv1", f"{at}.bn1"))
            y = F.relu(step(y, f"{at}.conv2", f"{at}.bn2", stride if first else 1, dilation))
            y = step(y, f"{at}.conv3", f"{at}.bn3")
            x = F.relu(y + (step(x, f"{at}.downsample.0", f"{at}.downsample.1", stride) if first else x))
    x = F.relu(step(x, "base.7.0", "base.7.1", dilation=2))
    x = F.relu(step(x, "base.8.0", "base.8.1"))
    x = F.conv2d(x, state["seg.weight"], state["seg.bias"])
    return F.conv_transpose2d(x, state["up.weight"], stride=8, padding=4, groups=19)


def test_the_network_is_the_published_one(thin: drn.DRN105) -> None:
    x = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        logits = thin(x)
        assert logits.shape == (2, 19, 64, 128)
        assert logits.std() > 0.01
        torch.testing.assert_close(logits, reference(thin.state_dict(), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 128), (32, 64), (128, 256)])
def test_pictures_are_resized_and_normalised(thin: drn.DRN105, size: tuple[int, int]) -> None:
    seen: list[Tensor] = []
    thin.base.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    read = thin.predict(torch.full((2, 3, *size), 0.2))  # grey 153
    assert read.shape == (2, 64, 128)  # at the judge's size
    expected = [(153 / 255 - mean) / deviation for mean, deviation in zip(drn.MEAN, drn.DEVIATION, strict=True)]
    torch.testing.assert_close(seen[0], torch.tensor(expected)[None, :, None, None].expand(2, 3, 64, 128))


def test_outputs_become_class_indices(thin: drn.DRN105) -> None:
    with torch.no_grad():
        thin.seg.weight.zero_()
        thin.up.weight.fill_(1)
        for output, name in enumerate(drn.CLASSES):
            thin.seg.bias.copy_(torch.eye(19)[output])
            (found,) = thin.predict(torch.zeros(1, 3, 64, 128)).unique().tolist()
            assert CARD.classes[found].name == name
            assert CARD.classes[found].evaluate

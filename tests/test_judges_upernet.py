"""UPerNet101. Its published weights are not at hand: random ones in their layout stand in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor

from dpgan.evaluation.judges import upernet
from dpgan.labels import load_card

CARD = load_card("ade20k", ROOT / "data")


def layout() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Keys and shapes of `encoder_epoch_50.pth` and `decoder_epoch_50.pth`, written down from their public code."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(key: str, outputs: int, inputs: int, kernel: int, norm: str) -> None:
        found[f"{key}.weight"] = (outputs, inputs, kernel, kernel)
        found.update({f"{norm}.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")})

    for number, outputs, inputs in ((1, 64, 3), (2, 64, 64), (3, 128, 64)):
        conv(f"conv{number}", outputs, inputs, 3, f"bn{number}")
    for level, inner, depth, inputs in ((1, 64, 3, 128), (2, 128, 4, 256), (3, 256, 23, 512), (4, 512, 3, 1024)):
        for block in range(depth):
            at, seen = f"layer{level}.{block}", 4 * inner if block else inputs
            conv(f"{at}.conv1", inner, seen, 1, f"{at}.bn1")
            conv(f"{at}.conv2", inner, inner, 3, f"{at}.bn2")
            conv(f"{at}.conv3", 4 * inner, inner, 1, f"{at}.bn3")
        conv(f"layer{level}.0.downsample.0", 4 * inner, inputs, 1, f"layer{level}.0.downsample.1")
    encoder = dict(found)
    found.clear()
    for pool in range(4):
        conv(f"ppm_conv.{pool}.0", 512, 2048, 1, f"ppm_conv.{pool}.1")
    conv("ppm_last_conv.0", 512, 2048 + 4 * 512, 3, "ppm_last_conv.1")
    for level, inputs in enumerate((256, 512, 1024)):
        conv(f"fpn_in.{level}.0", 512, inputs, 1, f"fpn_in.{level}.1")
        conv(f"fpn_out.{level}.0.0", 512, 512, 3, f"fpn_out.{level}.0.1")
    conv("conv_last.0.0", 512, 4 * 512, 3, "conv_last.0.1")
    return encoder, found | {"conv_last.1.weight": (150, 512, 1, 1), "conv_last.1.bias": (150,)}


def test_the_layout_is_that_of_the_published_files() -> None:
    with torch.device("meta"):
        judge = upernet.UPerNet101(CARD)
    for part, expected in zip((judge.encoder, judge.decoder), layout(), strict=True):
        state = part.state_dict()
        assert {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k} == expected


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> upernet.UPerNet101:
    monkeypatch.setattr(upernet, "WIDTH", 2)
    monkeypatch.setattr(upernet, "PYRAMID", 4)
    monkeypatch.setattr(upernet, "DEPTHS", (2, 2, 2, 2))
    torch.manual_seed(0)
    judge = upernet.UPerNet101(CARD).eval()
    for name, value in judge.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.3)
    return judge


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as its paper and its public code describe it, from the keys of the files alone."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        mean, var, scale, bias = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, bias)

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    for number in (1, 2, 3):
        x = F.relu(step(x, f"encoder.conv{number}", f"encoder.bn{number}", 2 if number == 1 else 1))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    levels = []
    for level in (1, 2, 3, 4):
        for block in range(2):
            at, stride = f"encoder.layer{level}.{block}", 2 if level > 1 and block == 0 else 1
            y = F.relu(step(x, f"{at}.conv1", f"{at}.bn1"))
            y = F.relu(step(y, f"{at}.conv2", f"{at}.bn2", stride))
            y = step(y, f"{at}.conv3", f"{at}.bn3")
            x = F.relu(y + (step(x, f"{at}.downsample.0", f"{at}.downsample.1", stride) if block == 0 else x))
        levels.append(x)
    pools = [
        F.relu(step(up(F.adaptive_avg_pool2d(x, side), x), f"decoder.ppm_conv.{i}.0", f"decoder.ppm_conv.{i}.1"))
        for i, side in enumerate((1, 2, 3, 6))
    ]
    f = F.relu(step(torch.cat([x, *pools], 1), "decoder.ppm_last_conv.0", "decoder.ppm_last_conv.1"))
    outs = {3: f}
    for i in (2, 1, 0):
        lateral = F.relu(step(levels[i], f"decoder.fpn_in.{i}.0", f"decoder.fpn_in.{i}.1"))
        f = lateral + up(f, lateral)
        outs[i] = F.relu(step(f, f"decoder.fpn_out.{i}.0.0", f"decoder.fpn_out.{i}.0.1"))
    fused = torch.cat([up(outs[i], outs[0]) for i in range(4)], 1)
    x = F.relu(step(fused, "decoder.conv_last.0.0", "decoder.conv_last.0.1"))
    return F.conv2d(x, state["decoder.conv_last.1.weight"], state["decoder.conv_last.1.bias"])


def test_the_network_is_the_published_one(thin: upernet.UPerNet101) -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = thin(x)
        assert logits.shape == (2, 150, 16, 24)
        assert logits.std() > 0.01
        torch.testing.assert_close(logits, reference(thin.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_each_picture_is_read_at_five_sizes(thin: upernet.UPerNet101) -> None:
    seen: list[Tensor] = []
    thin.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    votes = thin.scores(torch.full((1, 3, 64, 96), 0.2))  # grey 153
    # Short sides 300, 375, 450, 525, 600, aspect kept, both rounded up to multiples of 32.
    assert [tuple(x.shape[2:]) for x in seen] == [(320, 480), (384, 576), (480, 704), (544, 800), (608, 928)]
    expected = [(153 / 255 - m) / d for m, d in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    for x in seen:
        torch.testing.assert_close(x, torch.tensor(expected)[None, :, None, None].expand_as(x))
    assert votes.shape == (1, 150, 64, 96)
    torch.testing.assert_close(votes.sum(1), torch.full((1, 64, 96), 5.0))  # five probabilities


def test_the_longest_side_is_bounded() -> None:
    assert upernet.input_size(256, 256, 600) == (608, 608)
    assert upernet.input_size(100, 400, 600) == (256, 1024)  # 1000, then up to a multiple of 32


def test_outputs_become_class_indices(thin: upernet.UPerNet101, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upernet, "SHORT_SIDES", (32,))
    last = thin.decoder.conv_last[1]
    with torch.no_grad():
        last.weight.zero_()
        for output in (0, 20, 149):
            last.bias.copy_(torch.eye(150)[output])
            (found,) = thin.predict(torch.zeros(1, 3, 32, 32)).unique().tolist()
            assert found == output + 1  # ids 1 to 150 of ADE20K
    assert [CARD.classes[i].name for i in (1, 21, 150)] == ["wall", "car", "flag"]

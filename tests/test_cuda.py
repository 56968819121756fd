"""The networks and the step on a GPU: what the CPU's tests hold, there. Skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from raw_pairs import make_card
from test_holdout import held_out
from test_plain import SIZE, assembled, inputs, one_hot, pair
from torch import Tensor, nn

from dpgan.models.generators import build_generator
from dpgan.models.generators.blocks import spread
from dpgan.models.generators.export import for_inference
from dpgan.training.holdout import BATCH, Holdout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """fp32 is fp32, not TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(GPU).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
@pytest.mark.parametrize("training", [True, False])
def test_the_generator_is_the_plain_one(dtype: torch.dtype, tolerance: float, training: bool) -> None:
    ours, plain = pair("generator", dtype)
    labels, noise, _ = inputs(dtype)
    expected = plain.double().train(training)(one_hot(labels, torch.float64), spread(noise.double(), SIZE))
    painted = on_gpu(ours).train(training)(labels.to(GPU), noise.to(GPU)).cpu()
    torch.testing.assert_close(painted.double(), expected, rtol=0, atol=tolerance)
    if not training:
        served = for_inference(on_gpu(ours), dtype)(labels.to(GPU), noise.to(GPU)).cpu()
        torch.testing.assert_close(served.double(), expected, rtol=0, atol=tolerance)


def test_the_discriminator_is_the_plain_one() -> None:
    ours, plain = pair("discriminator", torch.float64)
    _, _, images = inputs(torch.float64)
    found, expected = on_gpu(ours)(images.to(GPU)), plain(images)
    for x, y in zip(
        [found.logits, *found.patches, *found.features],
        [expected.logits, *expected.patches, *expected.features],
        strict=True,
    ):
        torch.testing.assert_close(x.cpu(), y, rtol=0, atol=1e-9)


def losses(device: torch.device, precision: str, steps: int) -> list[dict[str, float]]:
    """The loss terms of a few steps of networks with a signal."""
    step = assembled(precision, device).step
    labels, noise, images = (tensor.to(device) for tensor in inputs(torch.float32))
    mixed: Tensor = torch.tensor([True, False, True, False, True], device=device)
    noises = noise, noise.flip(0)
    taken = [step(images, labels, noises.__getitem__, mixed, 0.0) for _ in range(steps)]
    return [{name: value.item() for name, value in terms.items()} for terms in taken]


# fp16: the first step alone, which the scaler leaves out where the gradients overflow.
@pytest.mark.parametrize(("precision", "tolerance", "steps"), [("fp32", 2e-3, 3), ("bf16", 0.05, 3), ("fp16", 0.05, 1)])
def test_the_step_has_the_losses_of_the_cpu(precision: str, tolerance: float, steps: int) -> None:
    expected = losses(torch.device("cpu"), "fp32", steps)
    for found, wanted in zip(losses(GPU, precision, steps), expected, strict=True):
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def test_the_holdout_has_the_scores_of_the_cpu() -> None:
    data = held_out(BATCH + 2)
    generator = build_generator(num_classes=3, noise_channels=3, width=2, pyramid_width=4).eval()

    def scores(device: torch.device) -> dict[str, float]:
        held = Holdout(data, np.arange(len(data.ids)), 0, device)
        assert next(held.extractor.network.parameters()).device.type == device.type
        return held.score(copy.deepcopy(generator).to(device), make_card())[0]

    assert scores(GPU) == pytest.approx(scores(torch.device("cpu")), rel=1e-3)

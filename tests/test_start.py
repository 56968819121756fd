"""The first steps of a training at the paper's rates: `init_gain` and `warmup_images`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpgan.config import RunSettings, TrainSettings
from dpgan.evaluation.efficiency import blocks_of_labels
from dpgan.models.discriminators import build_discriminator
from dpgan.models.layers import scale_normalised
from dpgan.presets import PRESETS
from dpgan.training.assemble import assemble
from dpgan.training.step import rate_scale

CLASSES = 8
SMALL = {"preset": "start", "images": 10_000, "batch": 2, "generator_width": 8, "pyramid_width": 8,
         "discriminator_width": 8, "precision": "fp32"}  # fmt: skip


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate(SMALL | changes)


def highest_terms(s: TrainSettings, steps: int = 20) -> dict[str, float]:
    """The largest value of each loss term in the first steps, at the paper's rates."""
    training = assemble(s, RunSettings(), torch.arange(CLASSES) == 0, 0, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    highest: dict[str, float] = {}
    for number in range(steps):
        images = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
        labels = blocks_of_labels(CLASSES, (64, 64), 2, random)
        noise = torch.randn(2, 2, 64, generator=random)
        mixed = torch.rand(CLASSES, generator=random) < 0.5
        terms = training.step(images, labels, lambda draw, z=noise: z[draw], mixed, number * s.batch / s.images)  # type: ignore[misc]
        highest = {name: max(highest.get(name, 0.0), float(value)) for name, value in terms.items()}
    return highest


def test_a_gentle_start_bounds_every_loss() -> None:
    """Without the two settings G_feature reaches 2.8e6 and D_labelmix 500 here, with one of them 250 and 890."""
    assert max(highest_terms(settings(init_gain=1.0, warmup_images=400)).values()) < 10


def test_the_gain_does_not_change_the_outputs() -> None:
    torch.manual_seed(0)
    network = build_discriminator("dp", patch_at="encoder", feature_at="decoder", num_classes=CLASSES, width=4).eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    before = network(images)
    scale_normalised(network, 50.0)
    after = network(images)
    torch.testing.assert_close(after, before)
    weight = network.down[1].conv_1.parametrizations.weight.original  # type: ignore[union-attr]
    assert weight.detach().std() > 0.01


@pytest.mark.parametrize(
    ("progress", "scale"), [(0.0, 0.005), (0.0198, 0.5), (0.0398, 1.0), (0.3, 1.0), (0.75, 0.5), (1.0, 0.0)]
)
def test_rates_rise_stay_and_fall(progress: float, scale: float) -> None:
    assert rate_scale(progress, settings(warmup_images=400, decay_from=0.5)) == pytest.approx(scale)


def test_no_warmup_is_the_whole_rate_at_once() -> None:
    assert rate_scale(0.0, settings()) == 1.0


def test_released_presets_start_as_the_released_code() -> None:
    gentle = {name for name, row in PRESETS.items() if row.get("init_gain") == 1.0 and row.get("warmup_images")}
    assert {"paper-cityscapes", "paper-ade20k", "paper-ade20k-outdoor", "coco-stuff"} <= gentle
    assert not [name for name in gentle if name.startswith("released-")]

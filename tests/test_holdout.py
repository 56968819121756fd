"""The evaluation while training: where it computes, how much at once, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raw_pairs import make_card
from torch import Tensor, nn

from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.evaluation.features import extract, lite0
from dpgan.evaluation.fid import fid, kid
from dpgan.models.generators import build_generator
from dpgan.training import holdout
from dpgan.training.holdout import BATCH, FID, GRID_ROWS, KID, Holdout

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def held_out(count: int) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 64, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, (count, 32, 64), dtype=np.uint8), [str(i) for i in range(count)])


class Extractor:
    """Stands in for Lite0; notes the images that it gets."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seen = device, list[tuple[torch.device, int]]()

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append((images.device, len(images)))
        return torch.zeros(len(images), 4, dtype=torch.float64)


class Grey(nn.Module):
    """A generator that notes where it is asked to paint."""

    noise_channels = 3

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        assert labels.device == noise.device == ELSEWHERE
        return torch.zeros(len(labels), 3, *labels.shape[1:])


def test_features_are_computed_where_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout, "lite0", Extractor)
    data = held_out(2 * BATCH + 1)
    held = Holdout(data, np.arange(len(data.ids)), seed=0, device=ELSEWHERE)
    scores, _ = held.score(Grey(), make_card())  # type: ignore[arg-type]
    assert held.extractor.device == ELSEWHERE
    assert [count for _, count in held.extractor.seen] == 2 * [BATCH, BATCH, 1]  # type: ignore[attr-defined]
    assert set(scores) == {FID, KID}


def test_scores_are_those_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    data, painted = held_out(BATCH + 2), list[Tensor]()
    generator = build_generator(num_classes=3, noise_channels=3, width=2, pyramid_width=4).eval()
    generator.register_forward_hook(lambda _, inputs, photos: painted.append(photos))
    scores, sheet = Holdout(data, np.arange(len(data.ids)), 0, CPU).score(generator, make_card())
    real, fakes = extract(lite0(), to_float(data.images).split(BATCH)), extract(lite0(), painted)
    assert scores == {FID: fid(real, fakes), KID: kid(real, fakes)}
    assert sheet.shape[0] == GRID_ROWS * (32 + 4) - 4


def test_one_photo_has_no_score() -> None:
    generator = build_generator(num_classes=3, noise_channels=3, width=2, pyramid_width=4).eval()
    scores, sheet = Holdout(held_out(1), np.arange(1), 0, CPU).score(generator, make_card())
    assert scores == {}
    assert sheet.shape[:1] == (32,)

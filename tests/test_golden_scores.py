"""Scores of fixed pictures, as they have been since `MEASURE` was raised last.

If this fails, the same generator scores differently than before: raise `dpgan.evaluation.MEASURE`, so that no
score of before is compared with one of after, and write the new numbers here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from raw_pairs import make_card

from dpgan.config import EvaluateSettings
from dpgan.data.prepare import Split
from dpgan.evaluation import MEASURE
from dpgan.evaluation.evaluate import Evaluator
from dpgan.evaluation.features import lite0
from dpgan.evaluation.judges.trained import Trained
from dpgan.evaluation.reference import References
from dpgan.models.generators import build_generator

CARD = make_card(classes=[
    {"id": 0, "name": "sky", "color": (0, 0, 0), "evaluate": True},
    {"id": 1, "name": "road", "color": (0, 0, 1), "evaluate": True},
    {"id": 2, "name": "car", "color": (0, 0, 2), "evaluate": True, "thing": True},
    {"id": 3, "name": "void", "color": (0, 0, 3), "void": True},
])  # fmt: skip
GOLDEN: dict[int, dict[str, tuple[float, float, float]]] = {2: {  # value and interval
    "fid_lite0": (134.149, 109.794, 158.504),
    "kid_lite0": (270.659, 170.676, 370.641),
    "miou_trained": (15.561, 11.6948, 19.4272),
    "accuracy_trained": (33.1828, 24.6728, 41.6928),
    "iou_trained/sky": (0.0433816, 0, 0.102565),
    "iou_trained/road": (30.338, 21.462, 39.2141),
    "iou_trained/car": (16.3017, 11.7139, 20.8894),
    "diversity_lite0": (55.3098, 18.9588, 91.6607),
    "fid_lite0_x2": (243.121, 219.008, 267.234),
    "kid_lite0_x2": (682.709, 610.499, 754.92),
    "fid_lite0_objects_all": (161.329, 124.154, 198.504),
    "kid_lite0_objects_all": (229.776, 136.095, 323.457),
    "fid_lite0_objects_large": (247.983, 214.145, 281.822),
    "kid_lite0_objects_large": (602.778, 525.687, 679.869),
    "fid_lite0_objects_medium": (129.944, 95.114, 164.774),
    "kid_lite0_objects_medium": (186.205, 109.956, 262.454),
}}  # fmt: skip


def blocks(rng: np.random.Generator, count: int) -> Split:
    """Photos of coloured noise, and label maps of blocks."""
    labels = rng.integers(0, CARD.num_classes, (count, 4, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    images = rng.integers(0, 256, (count, 4, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return Split(images, labels, [f"{i}" for i in range(count)])


def scored(folder: Path) -> dict[str, tuple[float, float, float]]:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    judge = Trained(CARD, pretrained=True).eval()
    generator = build_generator(num_classes=CARD.num_classes, noise_channels=3, width=2, pyramid_width=4).eval()
    with torch.no_grad():
        generator.to_rgb.weight.mul_(1000)  # the initial weights are so small that every photo is grey
    settings = EvaluateSettings(noise_seeds=2, resolutions=(2,), objects=True)
    evaluator = Evaluator(CARD, blocks(rng, 8), blocks(rng, 8), lite0(), judge, settings,
                          References(folder, "golden"))  # fmt: skip
    return {name: (score.value, *score.interval) for name, score in evaluator.generator(generator).items()}


def test_scores_are_those_of_this_measure(tmp_path: Path) -> None:
    found = scored(tmp_path)
    assert set(found) == set(GOLDEN[MEASURE])
    for name, values in GOLDEN[MEASURE].items():
        assert found[name] == pytest.approx(values, rel=2e-3, abs=1e-3), name

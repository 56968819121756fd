"""Scores of the validation split on a tiny dataset, with the real extractor and an untrained judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_card
from PIL import Image

from dpgan.config import EvaluateSettings
from dpgan.data.prepare import open_prepared
from dpgan.evaluation.evaluate import Evaluator, all_finite
from dpgan.evaluation.features import lite0
from dpgan.evaluation.judges.trained import Trained
from dpgan.evaluation.report import grid
from dpgan.models.generators import DPGenerator


def make_evaluator(tiny: Path, batch: int = 4) -> Evaluator:
    torch.manual_seed(0)
    judge = Trained(tiny_card()).eval()
    train, val = open_prepared(tiny, "train"), open_prepared(tiny, "val")
    return Evaluator(tiny_card(), train, val, lite0(), judge, EvaluateSettings(batch=batch))


@pytest.fixture(scope="module")
def evaluator(tiny: Path) -> Evaluator:
    return make_evaluator(tiny)


@pytest.fixture(scope="module")
def generator() -> DPGenerator:
    torch.manual_seed(1)
    model = DPGenerator(tiny_card().num_classes, noise_channels=3, width=2, pyramid_width=4).eval()
    with torch.no_grad():
        model.to_rgb.weight.mul_(1000)  # the initial weights are so small that every photo is grey
    return model


def test_real_photos_beat_mean_colours(evaluator: Evaluator) -> None:
    floor, ceiling = evaluator.floor(), evaluator.ceiling()
    assert ceiling["fid_lite0"] < floor["fid_lite0"]
    assert ceiling["kid_lite0"] < floor["kid_lite0"]
    assert set(floor) == set(ceiling)


def test_scores_do_not_depend_on_the_batch(tiny: Path, evaluator: Evaluator, generator: DPGenerator) -> None:
    done = []
    scores = evaluator.generator(generator, lambda *facts: done.append(facts))
    assert done == [(4, 8), (8, 8)]
    other = make_evaluator(tiny, batch=3).generator(generator, lambda *_: None)
    for name, value in scores.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name


def test_the_contact_sheet_shows_three_columns(evaluator: Evaluator, generator: DPGenerator, tmp_path: Path) -> None:
    evaluator.contact_sheet(generator, tmp_path / "sheet.png", rows=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] > 3 * 256
    assert sheet[100:, :256].std() > 10


def test_grid_places_images_row_by_row() -> None:
    columns = [np.full((2, 3, 4, 3), 10, np.uint8), np.full((2, 3, 4, 3), 20, np.uint8)]
    sheet = grid(columns)
    assert sheet.shape == (3 * 2 + 4, 4 * 2 + 4, 3)
    assert sheet[0, 0, 0] == 10
    assert sheet[-1, -1, 0] == 20


def test_nan_weights_are_not_finite(generator: DPGenerator) -> None:
    assert all_finite(generator)
    broken = DPGenerator(5, noise_channels=2, width=1, pyramid_width=2)
    with torch.no_grad():
        broken.stem.bias[0] = float("nan")
    assert not all_finite(broken)

"""Whole trainings of networks other than DP-GAN's: data, losses, averages, statistics, hold-out and candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_objectives import ROWS
from test_training import CPU, Records, job

from dpgan.models.generators import build_generator
from dpgan.training.candidates import candidate_path
from dpgan.training.loop import train


@pytest.mark.parametrize(
    "changes",
    [
        {"generator": "spade", "discriminator": "patch", **ROWS["patch"]},
        {"generator": "oasis", "discriminator": "oasis", **ROWS["oasis"]},
        {"concat_s0": False, "patch_at": "both", "feature_at": "both", "patch_gradient": "released"},
    ],
    ids=str,
)
def test_a_whole_training(tiny: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    work = job(tiny, tmp_path, workers=1, images=8, evaluate_images=8, **changes)
    log = Records(tmp_path / "log")
    train(work, CPU, log, lambda *_: None)
    losses = [row for row in log.read() if "loss/G_total" in row]
    assert len(losses) == 2
    assert all(np.isfinite(value) for row in losses for value in row.values())
    generator = build_generator(**work.settings.generator_arguments(work.card.num_classes))
    generator.load_state_dict(load_file(candidate_path(tmp_path, 8)))
    with torch.no_grad():
        photo = generator.eval()(torch.zeros(1, 32, 64, dtype=torch.uint8), torch.zeros(1, 3))
    assert torch.isfinite(photo).all()

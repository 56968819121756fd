"""A training of the tiny dataset with tiny networks, for the tests that train. No Ray: worker processes import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import tiny_card

from dpgan.config import RunSettings, TrainSettings
from dpgan.training.build import Job

SETTINGS = {"preset": "test", "images": 24, "batch": 4, "generator_width": 2, "pyramid_width": 4, "noise_channels": 3,
            "discriminator_width": 2, "holdout": 8, "evaluate_images": 12, "precision": "fp32"}  # fmt: skip
CPU = torch.device("cpu")


def job(tiny: Path, folder: Path, workers: int, **changes: Any) -> Job:
    folder.mkdir(exist_ok=True)
    run = RunSettings(workers=workers, checkpoint_images=4, log_images=4, device="cpu")
    settings = TrainSettings.model_validate({**SETTINGS, **changes})
    trains = {"settings": settings.model_dump(mode="json"), "seed": 3}
    return Job(tiny_card(), settings, run, 3, trains, prepared=tiny, folder=folder, facts={"identity": "test"})

"""What is trained, on what, and where it is kept; and how a training of it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpgan.config import RunSettings, TrainSettings
from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.data.staging import Published
from dpgan.labels import Card
from dpgan.models.perceptual import mobilenet_loss, vgg19_loss
from dpgan.training.assemble import Training, assemble
from dpgan.training.checkpoint import Checkpoints
from dpgan.training.strategy import broadcast_tensors

# Real images behind the channel deviations of the perceptual loss.
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where it is kept."""

    card: Card
    settings: TrainSettings
    run: RunSettings
    seed: int
    trains: Mapping[str, Any]  # all that decides what is trained, as JSON: a checkpoint of other ones does not fit
    prepared: Path  # the prepared arrays
    folder: Path  # the run's own folder: checkpoints and candidates; the same path on every worker
    facts: Mapping[str, Any]  # identities that every checkpoint names
    fork: Path | None = None  # folder of the run whose newest checkpoint this one starts from
    published: Published | None = None  # the prepared arrays for nodes that do not share the path `prepared`

    def same_everywhere(self) -> dict[str, str]:
        """What every worker must work with: the versions that the driver saw."""
        seen = {"data": self.trains.get("data"), "code": self.facts.get("code")}
        return {name: value for name, value in seen.items() if value is not None}

    def checkpoints(self) -> Checkpoints:
        """Where the run keeps its checkpoints."""
        run = self.run
        return Checkpoints(self.folder / "checkpoints", self.trains, run.keep_last, run.keep_every)


def build(job: Job, device: torch.device, data: Split, samples: np.ndarray) -> Training:
    """The job's training at its start, by every worker.

    The perceptual loss is calibrated on the first of the `samples` of `data`; all workers take rank 0's, whose
    rounding may differ from that of another node's hardware.
    """
    s, perceptual = job.settings, None
    if s.losses.perceptual and s.perceptual_network == "vgg19":
        perceptual = vgg19_loss(job.run.vgg19).to(device)
    elif s.losses.perceptual:
        photos = np.stack([data.images[i] for i in samples[:CALIBRATION_IMAGES]])
        perceptual = mobilenet_loss(to_float(photos).to(device))
    if perceptual is not None:
        broadcast_tensors(perceptual)
    return assemble(s, job.run, torch.from_numpy(job.card.void), job.seed, device, perceptual)

"""What is trained, on what, and where it is kept; and how a training of it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from dpgan.config import RunSettings, TrainSettings
from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.data.staging import Published
from dpgan.errors import UserError
from dpgan.labels import Card
from dpgan.models.discriminators import build_discriminator
from dpgan.models.generators import build_generator
from dpgan.models.perceptual import mobilenet_loss, vgg19_loss
from dpgan.training.assemble import Training, assemble
from dpgan.training.checkpoint import Checkpoint, Checkpoints, differences

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

    def checkpoints(self) -> Checkpoints:
        """Where the run keeps its checkpoints."""
        run = self.run
        return Checkpoints(self.folder / "checkpoints", self.trains, run.keep_last, run.keep_every)


def check_fork(job: Job, checkpoint: Checkpoint) -> None:
    """UserError where the networks of a checkpoint that is to be forked have other layers than the job's."""
    with torch.device("meta"):
        generator = build_generator(**job.settings.generator_arguments(job.card.num_classes))
        discriminator = build_discriminator(**job.settings.discriminator_arguments(job.card.num_classes))
    for name, module in {"generator": generator, "discriminator": discriminator}.items():
        expected = {key: list(value.shape) for key, value in module.state_dict().items()}
        with safe_open(checkpoint.file(name), "pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        changed = differences(found, expected)
        if changed:
            raise UserError(
                f"params.yaml: train.fork: the {name} of {checkpoint.path} has other layers than this run's (for one, "
                f"{changed[0]}): fork it with the networks' settings and the classes that it was trained with"
            )


def build(job: Job, device: torch.device, data: Split, samples: np.ndarray) -> Training:
    """The job's training at its start; the perceptual loss is calibrated on the first of the `samples` of `data`."""
    s, perceptual = job.settings, None
    if s.losses.perceptual and s.perceptual_network == "vgg19":
        perceptual = vgg19_loss(job.run.vgg19).to(device)
    elif s.losses.perceptual:
        photos = np.stack([data.images[i] for i in samples[:CALIBRATION_IMAGES]])
        perceptual = mobilenet_loss(to_float(photos).to(device))
    return assemble(s, job.run, torch.from_numpy(job.card.void), job.seed, device, perceptual)

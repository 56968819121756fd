"""Networks, losses, optimizers and the step, made from the settings of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpgan.config import RunSettings, TrainSettings
from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.hardware import native_bf16
from dpgan.labels import Card
from dpgan.models.discriminators import Discriminator, build_discriminator
from dpgan.models.generators import Generator, build_generator
from dpgan.models.perceptual import mobilenet_loss, vgg19_loss
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from dpgan.training.step import TrainingStep
from dpgan.training.strategy import DDPEngine

# Real images behind the channel deviations of the perceptual loss.
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where it is kept."""

    card: Card
    settings: TrainSettings
    run: RunSettings
    seed: int
    prepared: Path  # the prepared arrays
    folder: Path  # the run's own folder: checkpoints and candidates; the same path on every worker
    facts: Mapping[str, Any]  # identities that every checkpoint names


@dataclass
class Training:
    """The networks, their optimizers, and the step that moves them."""

    generator: Generator
    discriminator: Discriminator
    average: Generator
    step: TrainingStep

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "optimizer_generator": self.step.generator_engine.optimizer,
            "optimizer_discriminator": self.step.discriminator_engine.optimizer,
        }


def build(job: Job, device: torch.device, data: Split, samples: np.ndarray) -> Training:
    s, classes = job.settings, job.card.num_classes
    torch.manual_seed(job.seed)  # the same initial weights on every worker
    # channels_last: a third less time for the discriminator in bf16 on a CPU, and what tensor cores want.
    last = torch.channels_last
    generator = build_generator(**s.generator_arguments(classes)).to(device).to(memory_format=last)
    discriminator = build_discriminator(**s.discriminator_arguments(classes)).to(device).to(memory_format=last)
    perceptual = None
    if s.losses.perceptual and s.perceptual_network == "vgg19":
        perceptual = vgg19_loss(job.run.vgg19).to(device)
    elif s.losses.perceptual:
        photos = np.stack([data.images[i] for i in samples[:CALIBRATION_IMAGES]])
        perceptual = mobilenet_loss(to_float(photos).to(device))
    average = copy.deepcopy(generator).requires_grad_(False)
    generator_loss = GeneratorLoss(generator, discriminator, perceptual, s)
    discriminator_loss = DiscriminatorLoss(discriminator, s)
    adam = partial(torch.optim.Adam, fused=True)
    bf16 = s.precision == "bf16" or (s.precision == "auto" and native_bf16(device))
    step = TrainingStep(
        DDPEngine(
            generator_loss,
            adam(generator.parameters(), lr=s.lr_generator, betas=(s.beta1_generator, s.beta2)),
            device,
        ),
        DDPEngine(
            discriminator_loss,
            adam(discriminator.parameters(), lr=s.lr_discriminator, betas=(s.beta1_discriminator, s.beta2)),
            device,
        ),
        generator,
        discriminator,
        average,
        s,
        torch.from_numpy(job.card.void).to(device),
        partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16),
    )
    return Training(generator, discriminator, average, step)

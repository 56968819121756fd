"""Networks, losses, optimizers and the step, made from the settings of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
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
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.generators import DPGenerator
from dpgan.models.perceptual import PerceptualLoss
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from dpgan.training.step import TrainingStep
from dpgan.training.strategy import DDPEngine, Engine

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


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; losses, BatchNorm's statistics and spectral norm stay fp32."""
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype, device: torch.device) -> Callable[[], torch.autocast]:
    return partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)


@dataclass
class Training:
    """The networks, their optimizers, and the step that moves them."""

    generator: DPGenerator
    discriminator: DPDiscriminator
    average: DPGenerator
    step: TrainingStep

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    @property
    def engines(self) -> dict[str, Engine]:
        """By the names of their optimizers' files in a checkpoint."""
        return {
            "optimizer_generator": self.step.generator_engine,
            "optimizer_discriminator": self.step.discriminator_engine,
        }

    @property
    def counters(self) -> dict[str, float]:
        """Metrics that count over this process: updates left out because their gradients overflowed (fp16, ZeRO)."""
        return {"updates_skipped": self.step.skipped} if self.step.skipped else {}


def build(job: Job, device: torch.device, data: Split, samples: np.ndarray) -> Training:
    s, classes = job.settings, job.card.num_classes
    torch.manual_seed(job.seed)  # the same initial weights on every worker
    # channels_last: a third less time for the discriminator in bf16 on a CPU, and what tensor cores want.
    last = torch.channels_last
    generator = DPGenerator(**s.generator(classes)).to(device).to(memory_format=last)
    discriminator = DPDiscriminator(classes, s.discriminator_width, s.discriminator_spectral_norm)
    discriminator.to(device).to(memory_format=last)
    perceptual = None
    if s.losses.perceptual:
        perceptual = PerceptualLoss().to(device)
        photos = np.stack([data.images[i] for i in samples[:CALIBRATION_IMAGES]])
        perceptual.calibrate(to_float(photos).to(device))
    average = copy.deepcopy(generator).requires_grad_(False)
    generator_loss = GeneratorLoss(generator, discriminator, perceptual, s.losses, s.feature_matching)
    discriminator_loss = DiscriminatorLoss(discriminator, s.losses)
    if not s.losses.patch:
        discriminator.heads.requires_grad_(False)
    dtype = compute_dtype(s.precision, device)

    def engine(module: torch.nn.Module, trained: torch.nn.Module, rate: float, beta1: float) -> Engine:
        optimizer = torch.optim.Adam(trained.parameters(), lr=rate, betas=(beta1, s.beta2), fused=True)
        if job.run.strategy == "deepspeed":
            from dpgan.training.deepspeed_engine import DeepSpeedEngine

            return DeepSpeedEngine(module, optimizer, device, dtype, job.run.zero_stage)
        return DDPEngine(module, optimizer, device, fp16=dtype == torch.float16)

    step = TrainingStep(
        engine(generator_loss, generator, s.lr_generator, s.beta1_generator),
        engine(discriminator_loss, discriminator, s.lr_discriminator, s.beta1_discriminator),
        generator,
        discriminator,
        average,
        s,
        torch.from_numpy(job.card.void).to(device),
        autocast(dtype, device),
    )
    return Training(generator, discriminator, average, step)

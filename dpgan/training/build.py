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
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dpgan.config import RunSettings, TrainSettings
from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.data.staging import Published
from dpgan.errors import UserError
from dpgan.hardware import native_bf16
from dpgan.labels import Card
from dpgan.models.discriminators import Discriminator, build_discriminator
from dpgan.models.generators import Generator, build_generator
from dpgan.models.perceptual import mobilenet_loss, vgg19_loss
from dpgan.training.checkpoint import Checkpoint, Checkpoints, differences, load_state
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

    generator: Generator
    discriminator: Discriminator
    average: Generator
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

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint must hold, by file; by every worker. The modules' tensors are those in use."""
        modules = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        return modules | {name: engine.state() for name, engine in self.engines.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Put back what `state` gave; every worker must call it."""
        for name, module in self.modules.items():
            load_state(module, checkpoint.file(name))
        for name, engine in self.engines.items():
            engine.load(load_file(checkpoint.file(name)))


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
    if job.run.compile:
        generator.compile()
        discriminator.compile()
    generator_loss = GeneratorLoss(generator, discriminator, perceptual, s)
    discriminator_loss = DiscriminatorLoss(discriminator, s)
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

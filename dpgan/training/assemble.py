"""The networks, their optimizers and the step of a training, made from its settings; without data."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor

from dpgan.config import RunSettings, TrainSettings
from dpgan.hardware import native_bf16
from dpgan.models.discriminators import Discriminator, build_discriminator
from dpgan.models.generators import Generator, build_generator
from dpgan.models.layers import INIT_GAIN, channels_last, scale_normalised
from dpgan.models.perceptual import PerceptualLoss
from dpgan.training.checkpoint import Checkpoint, load_state
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from dpgan.training.step import TrainingStep
from dpgan.training.strategy import DDPEngine, Engine


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; losses, BatchNorm's statistics and spectral norm stay fp32."""
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


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

    def finite(self) -> bool:
        """Whether all weights and buffers are finite numbers."""
        tensors = [tensor for module in self.modules.values() for tensor in module.state_dict().values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def load(self, checkpoint: Checkpoint) -> None:
        """Put back what `state` gave; every worker must call it."""
        for name, module in self.modules.items():
            load_state(module, checkpoint.file(name))
        for name, engine in self.engines.items():
            engine.load(load_file(checkpoint.file(name)))


def assemble(
    settings: TrainSettings,
    run: RunSettings,
    void: Tensor,
    seed: int,
    device: torch.device,
    perceptual: PerceptualLoss | None = None,
) -> Training:
    """A training at its start, on `device`. `void` bool [C] marks the classes that do not count."""
    s, classes = settings, len(void)
    torch.manual_seed(seed)  # the same initial weights on every worker
    generator = build_generator(**s.generator_arguments(classes)).to(device)
    discriminator = build_discriminator(**s.discriminator_arguments(classes)).to(device)
    for network in (generator, discriminator):
        if s.init_gain != INIT_GAIN:
            scale_normalised(network, s.init_gain / INIT_GAIN)
        channels_last(network)  # a third less time for the discriminator in bf16 on a CPU; what tensor cores want
    average = copy.deepcopy(generator).requires_grad_(False)
    if run.compile:
        generator.compile()
        discriminator.compile()
    generator_loss = GeneratorLoss(generator, discriminator, perceptual, s)
    discriminator_loss = DiscriminatorLoss(discriminator, s)
    dtype = compute_dtype(s.precision, device)

    def engine(module: torch.nn.Module, trained: torch.nn.Module, rate: float, beta1: float) -> Engine:
        optimizer = torch.optim.Adam(trained.parameters(), lr=rate, betas=(beta1, s.beta2), fused=True)
        if run.strategy == "deepspeed":
            from dpgan.training.deepspeed_engine import DeepSpeedEngine

            return DeepSpeedEngine(module, optimizer, device, dtype, run.zero_stage)
        return DDPEngine(module, optimizer, device, fp16=dtype == torch.float16)

    step = TrainingStep(
        engine(generator_loss, generator, s.lr_generator, s.beta1_generator),
        engine(discriminator_loss, discriminator, s.lr_discriminator, s.beta1_discriminator),
        generator,
        discriminator,
        average,
        s,
        void.to(device),
        partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32),
    )
    return Training(generator, discriminator, average, step)

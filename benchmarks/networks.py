"""A photo and a training iteration at the paper's widths, beside DP-GAN layer by layer (tests/plain.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, Work, take_turns
from dpgan.config import TrainSettings
from dpgan.models.discriminators import build_discriminator
from dpgan.models.generators import Generator, build_generator
from dpgan.models.generators.blocks import spread
from dpgan.training.build import autocast
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from dpgan.training.step import TrainingStep
from dpgan.training.strategy import DDPEngine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain import PlainDiscriminator, PlainGenerator, PlainTraining

FP32, BF16 = torch.float32, torch.bfloat16


class Setting(NamedTuple):
    """A dataset's classes and size; one image a step."""

    num_classes: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.num_classes} classes"


CITYSCAPES, ADE20K = Setting(35, 256, 512), Setting(151, 256, 256)


class Inputs:
    """A label map of random 8x8 blocks, its one-hot form, noise as both codes take it, and a photo."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        classes, height, width = setting
        random = torch.Generator().manual_seed(0)
        blocks = torch.randint(classes, (1, height // 8, width // 8), generator=random, dtype=torch.uint8)
        self.labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).to(device)
        self.one_hot = F.one_hot(self.labels.long(), classes).movedim(-1, 1).float()
        self.noise = torch.randn(1, 64, generator=random).to(device)
        self.spread = spread(self.noise, (height, width)).contiguous()
        self.images = (torch.rand(1, 3, height, width, generator=random) * 2 - 1).to(device)
        self.mixed_classes = torch.arange(classes, device=device) % 2 == 0
        self.void = torch.arange(classes, device=device) == 0


def paint(generator: Callable[[Tensor, Tensor], Tensor], labels: Tensor, noise: Tensor, dtype: torch.dtype) -> Work:
    """A photo in eval mode."""

    def work() -> None:
        with torch.inference_mode(), autocast(dtype, labels.device)():
            generator(labels, noise)

    return work


def generator_of(setting: Setting, device: torch.device) -> Generator:
    return build_generator("dp", num_classes=setting.num_classes).to(device).to(memory_format=torch.channels_last)


def plain_iteration(setting: Setting, device: torch.device) -> Work:
    """The reference: fp32, alternating updates."""
    inputs, settings = Inputs(setting, device), TrainSettings(preset="benchmark", images=1, batch=1)
    training = PlainTraining(
        PlainGenerator(setting.num_classes).to(device), PlainDiscriminator(setting.num_classes).to(device),
        PlainGenerator(setting.num_classes).to(device).requires_grad_(False), settings.losses,
        (settings.lr_generator, settings.lr_discriminator), (settings.beta1_generator, settings.beta2), settings.ema,
    )  # fmt: skip
    noises = inputs.spread, inputs.spread.flip(1)
    return lambda: training.step(inputs.images, inputs.one_hot, noises, inputs.mixed_classes, FP32)


def iterations(setting: Setting, device: torch.device) -> Callable[[torch.dtype, bool], Work]:
    """Ours, of one pair of networks: (dtype, shared_fake) -> an iteration."""
    inputs, settings = Inputs(setting, device), TrainSettings(preset="benchmark", images=1, batch=1)
    generator, average = generator_of(setting, device), generator_of(setting, device).requires_grad_(False)
    discriminator = build_discriminator("dp", "encoder", "decoder", num_classes=setting.num_classes)
    discriminator = discriminator.to(device).to(memory_format=torch.channels_last)
    adam = partial(torch.optim.Adam, betas=(settings.beta1_generator, settings.beta2), fused=True)
    optimizers = adam(generator.parameters()), adam(discriminator.parameters())

    def iteration(dtype: torch.dtype, shared_fake: bool) -> Work:
        s = settings.model_copy(update={"shared_fake": shared_fake})
        step = TrainingStep(
            DDPEngine(GeneratorLoss(generator, discriminator, None, s), optimizers[0], device),
            DDPEngine(DiscriminatorLoss(discriminator, s), optimizers[1], device),
            generator, discriminator, average, s, inputs.void, autocast(dtype, device),
        )  # fmt: skip
        noises = inputs.noise, inputs.noise.flip(1)
        return lambda: step(inputs.images, inputs.labels, noises.__getitem__, inputs.mixed_classes, 0.0)

    return iteration

"""A photo, a training iteration and its memory at the paper's widths, beside DP-GAN layer by layer (tests/plain.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from plain import PlainDiscriminator, PlainGenerator, PlainTraining
from torch import Tensor

from benchmarks.machine import throughput
from benchmarks.measure import Options, Row, Work, take_turns
from dpgan.config import RunSettings, TrainSettings
from dpgan.evaluation.efficiency import blocks_of_labels, flops
from dpgan.models.generators import build_generator
from dpgan.models.generators.blocks import spread
from dpgan.models.generators.export import for_inference
from dpgan.training.assemble import assemble

FP32, BF16 = torch.float32, torch.bfloat16
NAMES = {FP32: "fp32", BF16: "bf16"}


class Setting(NamedTuple):
    """The classes and the size of a dataset, and the images of a step."""

    num_classes: int
    height: int
    width: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.num_classes} classes"


SETTINGS = TrainSettings(preset="benchmark", images=1, batch=1)  # the papers' widths, rates and losses
CITYSCAPES, ADE20K = Setting(35, 256, 512), Setting(151, 256, 256)
# How many times less than the reference: (dtype, one fake for both updates) -> target.
ITERATIONS = {(FP32, False): 1.8, (FP32, True): 2.2, (BF16, False): 3.3, (BF16, True): 4.2}
PHOTOS = {FP32: 1.6, BF16: 3.2}


def of_batch(batch: int) -> list[Setting]:
    return [setting._replace(batch=batch) for setting in (CITYSCAPES, ADE20K)]


class Inputs:
    """Label maps of random 8x8 blocks, their one-hot form, noise as both codes take it, and photos."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        classes, height, width, batch = setting
        random = torch.Generator().manual_seed(0)
        self.labels = blocks_of_labels(classes, (height, width), batch, random).to(device)
        self.one_hot = F.one_hot(self.labels.long(), classes).movedim(-1, 1).float()
        self.noise = torch.randn(batch, 64, generator=random).to(device)
        self.spread = spread(self.noise, (height, width)).contiguous()
        self.images = (torch.rand(batch, 3, height, width, generator=random) * 2 - 1).to(device)
        self.images = self.images.to(memory_format=torch.channels_last)  # as the loader's are
        self.mixed_classes = torch.arange(classes, device=device) % 2 == 0
        self.void = torch.arange(classes, device=device) == 0


def inference(options: Options) -> Iterator[Row]:
    """A photo by the generator in eval mode, and by the one that is served."""
    device = options.device
    peak = {dtype: throughput(dtype, device) for dtype in PHOTOS}
    for setting in of_batch(options.batch):
        inputs = Inputs(setting, device)
        generator = build_generator("dp", num_classes=setting.num_classes).to(device).eval()
        generator = generator.to(memory_format=torch.channels_last)
        served = {dtype: for_inference(generator, dtype) for dtype in PHOTOS}
        plain = PlainGenerator(setting.num_classes).to(device).eval()
        works = {"reference": _painting(plain, inputs.one_hot, inputs.spread)}
        for dtype in PHOTOS:
            works[f"evaluated, {NAMES[dtype]}"] = _painting(generator, inputs.labels, inputs.noise, dtype)
            works[f"served, {NAMES[dtype]}"] = _painting(served[dtype], inputs.labels, inputs.noise)
        taken = take_turns(works, options.rounds, device)
        reference = taken.pop("reference")
        for name, values in taken.items():
            dtype = BF16 if "bf16" in name else FP32
            bound = float(np.median(reference)) / (flops(works[name]) / peak[dtype])
            target = PHOTOS[dtype] if name.startswith("served") else None
            yield Row(f"photo, {setting}: {name}", values, reference, target=target, bound=bound)


def _painting(
    generator: Callable[[Tensor, Tensor], Tensor], labels: Tensor, noise: Tensor, dtype: torch.dtype = FP32
) -> Work:
    def work() -> None:
        with torch.no_grad(), torch.autocast(labels.device.type, dtype, enabled=dtype != FP32):
            generator(labels, noise)

    return work


def iteration(options: Options) -> Iterator[Row]:
    """An update of the generator, of its average and of the discriminator."""
    device = options.device
    peak = {dtype: throughput(dtype, device) for dtype in NAMES}
    for setting in of_batch(options.batch):
        inputs = Inputs(setting, device)
        works = {(dtype, shared): our_iteration(inputs, dtype, shared) for dtype, shared in ITERATIONS}
        named = {f"{NAMES[d]}, {'one fake' if s else 'alternating'}": work for (d, s), work in works.items()}
        taken = take_turns({"reference": plain_iteration(inputs), **named}, options.rounds, device)
        reference = taken.pop("reference")
        for (name, values), ((dtype, _), target) in zip(taken.items(), ITERATIONS.items(), strict=True):
            bound = float(np.median(reference)) / (flops(named[name]) / peak[dtype])
            yield Row(f"iteration, {setting}: {name}", values, reference, target=target, bound=bound)


def plain_iteration(inputs: Inputs) -> Work:
    """The reference: fp32, alternating updates."""
    s, classes, device = SETTINGS, len(inputs.void), inputs.void.device
    training = PlainTraining(
        PlainGenerator(classes).to(device), PlainDiscriminator(classes).to(device),
        PlainGenerator(classes).to(device).requires_grad_(False), s.losses,
        (s.lr_generator, s.lr_discriminator), (s.beta1_generator, s.beta2), s.ema,
    )  # fmt: skip
    noises = inputs.spread, inputs.spread.flip(1)
    images = inputs.images.contiguous()
    return lambda: training.step(images, inputs.one_hot, noises, inputs.mixed_classes, FP32)


def our_iteration(inputs: Inputs, dtype: torch.dtype, shared_fake: bool) -> Work:
    """A training's step, as it is assembled for `dpgan train`."""
    settings = SETTINGS.model_copy(update={"precision": NAMES[dtype], "shared_fake": shared_fake})
    step = assemble(settings, RunSettings(), inputs.void, 0, inputs.void.device).step
    noises = inputs.noise, inputs.noise.flip(1)
    return lambda: step(inputs.images, inputs.labels, noises.__getitem__, inputs.mixed_classes, 0.0)


def memory(options: Options) -> Iterator[Row]:
    """The most memory that two iterations take, each in a process of its own: weights, optimizers and all."""
    for setting in of_batch(options.batch):
        reference = [_in_a_process(setting, options.device, None)]
        for dtype in NAMES:
            peak = [_in_a_process(setting, options.device, dtype)]
            yield Row(f"memory, {setting}: {NAMES[dtype]}, alternating", peak, reference, unit="byte", target=1.0)


def _in_a_process(setting: Setting, device: torch.device, dtype: torch.dtype | None) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, setting, device, dtype).result()


def _peak(setting: Setting, device: torch.device, dtype: torch.dtype | None) -> int:
    """Bytes; the reference's where there is no dtype."""
    inputs = Inputs(setting, device)
    work = plain_iteration(inputs) if dtype is None else our_iteration(inputs, dtype, shared_fake=False)
    for _ in range(2):
        work()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])  # getrusage's peak is the parent's too, where that is higher

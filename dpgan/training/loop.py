"""The training loop of one worker. N workers run it together; rank 0 alone writes and reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dpgan.config import RunSettings, TrainSettings
from dpgan.data import order
from dpgan.data.loader import Source, batches
from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split, open_prepared
from dpgan.files import write_json
from dpgan.hardware import native_bf16
from dpgan.labels import Card
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import DPGenerator
from dpgan.models.perceptual import PerceptualLoss
from dpgan.training.checkpoint import Checkpoints, load_optimizer, load_state, save_state
from dpgan.training.holdout import Holdout
from dpgan.training.step import DiscriminatorLoss, GeneratorLoss, TrainingStep
from dpgan.training.strategy import DDPEngine, rank, sum_over_workers, world_size

# Real images behind the BatchNorm statistics of an EMA generator that is scored or saved.
STATISTICS_IMAGES = 256
# Real images behind the channel deviations of the perceptual loss.
CALIBRATION_IMAGES = 128


class Tracker(Protocol):
    """What the loop tells the outside, by images seen."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, key: str, image: np.ndarray, step: int) -> None: ...


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


def train(job: Job, device: torch.device, tracker: Tracker, report: Callable[[int, int, str], None]) -> None:
    """Train until `settings.images` real images were seen; go on from the newest complete checkpoint.

    Leaves `folder/candidates/{last,best}.safetensors` and `folder/result.json`.
    """
    s, run, seed = job.settings, job.run, job.seed
    data = open_prepared(job.prepared, "train")
    samples, held_out = order.split_holdout(seed, len(data.ids), s.holdout)
    training = _build(job, device, data, samples)
    holdout = Holdout(data, held_out, seed, device)
    checkpoints = Checkpoints(job.folder / "checkpoints")
    step, best = _resume(checkpoints, training)
    if step and rank() == 0:
        report(step * s.batch, s.images, f"goes on from checkpoint {step}")

    total_steps = s.images // s.batch
    source = partial(Source, data.images, data.labels, samples, seed=seed, batch=s.batch, rank=rank(),
                     workers=world_size(), flip=s.flip, crop=s.crop)  # fmt: skip
    meter = _Meter(s.batch)
    for batch in batches(source(steps=range(step, total_steps)), device, threads=run.cpus_per_worker):
        meter.data_arrived()
        terms = training.step(
            batch.images,
            batch.labels,
            lambda draw, at=batch.positions: _noise(seed, at, s.noise_channels, device, draw),  # type: ignore[misc]
            torch.from_numpy(order.labelmix_table(seed, batch.step, job.card.num_classes)).to(device),
            progress=batch.step / total_steps,
        )
        meter.step_done(terms)
        step = batch.step + 1
        seen = step * s.batch
        finished = step == total_steps

        if finished or _due(seen, run.log_images, s.batch):
            values = meter.read()
            if rank() == 0:
                tracker.metrics(values, seen)
                report(seen, s.images, f"G {values['loss/G_total']:.2f}  D {values['loss/D_total']:.2f}")
        if finished or _due(seen, s.evaluate_images, s.batch):
            candidate = _with_statistics(training.average, source, batch.step, device, s)
            scores, grid = holdout.score(candidate, job.card)
            if rank() == 0:
                tracker.metrics(scores, seen)
                tracker.image("holdout/label_real_generated", grid, seen)
                best = _keep_candidates(job.folder / "candidates", candidate, scores, best, seen)
            meter.restart()
        if not finished and _due(seen, run.checkpoint_images, s.batch) and rank() == 0:
            checkpoints.save(step, training.modules, training.optimizers, {**job.facts, "best": best})
    if rank() == 0:
        result = {"images": step * s.batch, "images_per_s": meter.rate(), "best": best}
        write_json(job.folder / "result.json", result)


@dataclass
class _Training:
    """The networks, their optimizers, and the step that moves them."""

    generator: DPGenerator
    discriminator: DPDiscriminator
    average: DPGenerator
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


def _build(job: Job, device: torch.device, data: Split, samples: np.ndarray) -> _Training:
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
    return _Training(generator, discriminator, average, step)


def _resume(checkpoints: Checkpoints, training: _Training) -> tuple[int, dict[str, float] | None]:
    """Restore the newest complete checkpoint: (steps done, best hold-out score so far)."""
    found = checkpoints.newest()
    if found is None:
        return 0, None
    path, manifest = found
    for name, module in training.modules.items():
        load_state(module, path / f"{name}.safetensors")
    for name, optimizer in training.optimizers.items():
        load_optimizer(optimizer, path / f"{name}.safetensors")
    return manifest["step"], manifest["facts"]["best"]


def _noise(seed: int, at: range, channels: int, device: torch.device, draw: int = 0) -> Tensor:
    return torch.from_numpy(order.noise_at(seed, at, channels, draw)).to(device)


def _due(seen: int, every: int, batch: int) -> bool:
    """Whether a multiple of `every` images was passed by the last step."""
    return seen // every != (seen - batch) // every


def _with_statistics(
    average: DPGenerator, source: Callable[..., Source], step: int, device: torch.device, s: TrainSettings
) -> DPGenerator:
    """A copy of the EMA generator with BatchNorm statistics of its own, in eval mode."""
    candidate = copy.deepcopy(average)
    steps = range(step, step + max(1, STATISTICS_IMAGES // s.batch))
    inputs = (
        (b.labels, _noise(source.keywords["seed"], b.positions, s.noise_channels, device, draw=2))  # type: ignore[attr-defined]
        for b in batches(source(steps=steps), device)
    )
    recollect_statistics(candidate, inputs)
    return candidate.eval()


def _keep_candidates(
    folder: Path,
    candidate: DPGenerator,
    scores: Mapping[str, float],
    best: dict[str, float] | None,
    seen: int,
) -> dict[str, float]:
    """Save the candidate as `last`, and as `best` where its hold-out KID is the lowest so far."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(candidate, folder / "last.safetensors")
    kid = scores["holdout/kid_lite0"]
    if best is None or kid < best["kid"]:
        save_state(candidate, folder / "best.safetensors")
        return {"kid": kid, "images": seen}
    return best


class _Meter:
    """Mean losses over the workers, images/s, and the share of time that training waits for data."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.images = self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Leave out what was no training: evaluation, checkpoints."""
        self.last = time.perf_counter()
        self.terms: dict[str, Tensor] = {}
        self.steps, self.busy, self.waited = 0, 0.0, 0.0

    def data_arrived(self) -> None:
        now = time.perf_counter()
        self.waited += now - self.last
        self.last = now

    def step_done(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        self.steps += 1
        now = time.perf_counter()
        self.busy += now - self.last
        self.last = now

    def rate(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def read(self) -> dict[str, float]:
        """Metrics since the last reading; every worker must call it."""
        means = sum_over_workers(torch.stack([value.float() for value in self.terms.values()])) / self.steps
        elapsed = self.busy + self.waited
        images = self.steps * self.batch
        self.images, self.seconds = self.images + images, self.seconds + elapsed
        values = {f"loss/{name}": float(v) / world_size() for name, v in zip(self.terms, means, strict=True)}
        values["throughput/images_per_s"] = images / elapsed
        values["throughput/data_wait"] = self.waited / elapsed
        self.restart()
        return values

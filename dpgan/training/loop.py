"""The training loop of one worker. N workers run it together; rank 0 alone writes and reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpgan.config import TrainSettings
from dpgan.data import order
from dpgan.data.loader import Source, batches
from dpgan.data.prepare import open_prepared
from dpgan.files import write_json
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import DPGenerator
from dpgan.training.build import Job, Training, build
from dpgan.training.checkpoint import Checkpoints, load_state, save_state
from dpgan.training.holdout import Holdout
from dpgan.training.meter import Meter
from dpgan.training.strategy import rank, world_size

# Real images behind the BatchNorm statistics of an EMA generator that is scored or saved.
STATISTICS_IMAGES = 256


class Tracker(Protocol):
    """What the loop tells the outside, by images seen."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, key: str, image: np.ndarray, step: int) -> None: ...


def train(job: Job, device: torch.device, tracker: Tracker, report: Callable[[int, int, str], None]) -> None:
    """Train until `settings.images` real images were seen; go on from the newest complete checkpoint.

    Leaves `folder/candidates/{last,best}.safetensors` and `folder/result.json`.
    """
    s, run, seed = job.settings, job.run, job.seed
    data = open_prepared(job.prepared, "train")
    samples, held_out = order.split_holdout(seed, len(data.ids), s.holdout)
    training = build(job, device, data, samples)
    holdout = Holdout(data, held_out, seed, device)
    checkpoints = Checkpoints(job.folder / "checkpoints")
    step, best = _resume(checkpoints, training)
    if step and rank() == 0:
        report(step * s.batch, s.images, f"goes on from checkpoint {step}")

    total_steps = math.ceil(s.images / s.batch)
    source = partial(Source, data.images, data.labels, samples, seed=seed, batch=s.batch, accumulate=s.accumulate,
                     rank=rank(), workers=world_size(), flip=s.flip, crop=s.crop)  # fmt: skip
    meter = Meter()
    for batch in batches(source(total=s.images, steps=range(step, total_steps)), device, threads=run.cpus_per_worker):
        meter.data_arrived()
        terms = training.step(
            batch.images,
            batch.labels,
            lambda draw, at=batch.positions: _noise(seed, at, s.noise_channels, device, draw),  # type: ignore[misc]
            torch.from_numpy(order.labelmix_table(seed, batch.step, job.card.num_classes)).to(device),
            progress=batch.step / total_steps,
            sizes=batch.sizes,
        )
        step = batch.step + 1
        seen = min(step * s.batch, s.images)  # the last batch may be smaller
        meter.step_done(terms, seen - batch.step * s.batch)
        finished = step == total_steps

        if finished or _due(seen, run.log_images, s.batch):
            values = meter.read()
            if rank() == 0:
                tracker.metrics(values | training.counters, seen)
                report(seen, s.images, f"G {values['loss/G_total']:.2f}  D {values['loss/D_total']:.2f}")
        if finished or _due(seen, s.evaluate_images, s.batch):
            candidate = _with_statistics(training.average, source, batch.step, device, s)
            scores, grid = holdout.score(candidate, job.card)
            if rank() == 0:
                tracker.metrics(scores, seen)
                tracker.image("holdout/label_real_generated", grid, seen)
                best = _keep_candidates(job.folder / "candidates", candidate, scores, best, seen)
            meter.restart()
        if not finished and _due(seen, run.checkpoint_images, s.batch):
            states = {name: engine.state() for name, engine in training.engines.items()}  # by every worker
            if rank() == 0:
                checkpoints.save(step, training.modules, states, {**job.facts, "best": best})
    if rank() == 0:
        result = {"images": s.images, "images_per_s": meter.rate(), "best": best}
        write_json(job.folder / "result.json", result)


def _resume(checkpoints: Checkpoints, training: Training) -> tuple[int, dict[str, float] | None]:
    """Restore the newest complete checkpoint: (steps done, best hold-out score so far)."""
    found = checkpoints.newest()
    if found is None:
        return 0, None
    path, manifest = found
    for name, module in training.modules.items():
        load_state(module, path / f"{name}.safetensors")
    for name, engine in training.engines.items():
        engine.load(load_file(path / f"{name}.safetensors"))
    return manifest["step"], manifest["facts"]["best"]


def _noise(seed: int, at: Sequence[int], channels: int, device: torch.device, draw: int = 0) -> Tensor:
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
        for b in batches(source(total=steps.stop * s.batch, steps=steps), device)
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

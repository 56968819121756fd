"""The training loop of one worker. N workers run it together; rank 0 alone writes and reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpgan.config import TrainSettings
from dpgan.data import order
from dpgan.data.loader import Source, batches
from dpgan.data.prepare import open_prepared
from dpgan.files import write_json
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import Generator
from dpgan.training.build import Job, Training, build
from dpgan.training.checkpoint import Checkpoints, save_state, starting_point
from dpgan.training.holdout import Holdout
from dpgan.training.meter import Meter
from dpgan.training.strategy import agreed, rank, world_size

# Real images behind the BatchNorm statistics of an EMA generator that is scored or saved.
STATISTICS_IMAGES = 256


class Tracker(Protocol):
    """What the loop tells the outside, by images seen."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, key: str, image: np.ndarray, step: int) -> None: ...


def train(
    job: Job,
    device: torch.device,
    tracker: Tracker,
    report: Callable[[int, int, str], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train until `settings.images` real images were seen; go on from the newest complete checkpoint.

    Leaves `folder/candidates/{last,best}.safetensors` and `folder/result.json`. Where rank 0's `stop` says so, it
    ends after the current step with a checkpoint and no result.
    """
    s, run, seed = job.settings, job.run, job.seed
    data = open_prepared(job.prepared, "train")
    samples, held_out = order.split_holdout(seed, len(data.ids), s.holdout)
    training = build(job, device, data, samples)
    holdout = Holdout(data, held_out, seed, device)
    checkpoints = job.checkpoints()
    seen, best = _resume(job, checkpoints, training)
    if rank() == 0:
        restarts = _count_start(job.folder)
        tracker.metrics({"throughput/restarts": restarts}, seen)
        if seen:
            report(seen, s.images, f"goes on from the checkpoint at {seen} images")

    total_steps = s.images // s.batch
    source = partial(Source, data.images, data.labels, samples, seed=seed, batch=s.batch, rank=rank(),
                     workers=world_size(), flip=s.flip, crop=s.crop)  # fmt: skip
    meter = Meter(s.batch)
    for batch in batches(source(steps=range(seen // s.batch, total_steps)), device, threads=run.cpus_per_worker):
        meter.data_arrived()
        terms = training.step(
            batch.images,
            batch.labels,
            lambda draw, at=batch.positions: _noise(seed, at, s.noise_channels, device, draw),  # type: ignore[misc]
            torch.from_numpy(order.labelmix_table(seed, batch.step, job.card.num_classes)).to(device),
            progress=batch.step / total_steps,
        )
        meter.step_done(terms)
        seen = (batch.step + 1) * s.batch
        finished = batch.step + 1 == total_steps
        stopped = not finished and agreed(rank() == 0 and stop(), device)

        if finished or _due(seen, run.log_images, s.batch):
            values = meter.read()
            if rank() == 0:
                tracker.metrics(values, seen)
                report(seen, s.images, f"G {values['loss/G_total']:.2f}  D {values['loss/D_total']:.2f}")
        better = False
        if finished or _due(seen, s.evaluate_images, s.batch):
            candidate = _with_statistics(training.average, source, batch.step, device, s)
            scores, grid = holdout.score(candidate, job.card)
            better = best is None or scores["holdout/kid_lite0"] < best["kid"]
            if better:
                best = {"kid": scores["holdout/kid_lite0"], "images": seen}
            if rank() == 0:
                tracker.metrics(scores, seen)
                tracker.image("holdout/label_real_generated", grid, seen)
                _keep_candidates(job.folder / "candidates", candidate, better)
            meter.restart()
        if not finished and (stopped or better or _due(seen, run.checkpoint_images, s.batch)):
            state = training.state()
            if rank() == 0:
                checkpoints.save(seen, state, int(best["images"]) if best else None, {**job.facts, "best": best})
        if stopped:
            break
    if rank() == 0:
        checkpoints.wait()
        if seen == s.images:
            result = {"images": seen, "images_per_s": meter.rate(), "restarts": restarts, "best": best}
            write_json(job.folder / "result.json", result)


def _resume(job: Job, checkpoints: Checkpoints, training: Training) -> tuple[int, dict[str, float] | None]:
    """Restore the checkpoint that the run starts from: (images seen, best hold-out score of this run so far)."""
    found = starting_point(checkpoints, job.fork)
    if found is None:
        return 0, None
    training.load(found)
    return found.images, found.facts["best"] if found.path.parent == checkpoints.folder else None


def _count_start(folder: Path) -> int:
    """Note that the run starts; how often it was started again before."""
    with (folder / "starts").open("a+") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
        file.seek(0)
        return len(file.readlines()) - 1


def _noise(seed: int, at: range, channels: int, device: torch.device, draw: int = 0) -> Tensor:
    return torch.from_numpy(order.noise_at(seed, at, channels, draw)).to(device)


def _due(seen: int, every: int, batch: int) -> bool:
    """Whether a multiple of `every` images was passed by the last step."""
    return seen // every != (seen - batch) // every


def _with_statistics(
    average: Generator, source: Callable[..., Source], step: int, device: torch.device, s: TrainSettings
) -> Generator:
    """A copy of the EMA generator with BatchNorm statistics of its own, in eval mode."""
    candidate = copy.deepcopy(average)
    steps = range(step, step + max(1, STATISTICS_IMAGES // s.batch))
    inputs = (
        (b.labels, _noise(source.keywords["seed"], b.positions, s.noise_channels, device, draw=2))  # type: ignore[attr-defined]
        for b in batches(source(steps=steps), device)
    )
    recollect_statistics(candidate, inputs)
    return candidate.eval()


def _keep_candidates(folder: Path, candidate: Generator, better: bool) -> None:
    """Save the candidate as `last`, and as `best` where its hold-out KID is the lowest so far."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("last", "best") if better else ("last",):
        save_state(candidate, folder / f"{name}.safetensors")

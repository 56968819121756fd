"""The training loop of one worker. N workers run it together; rank 0 alone writes and reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpgan.config import TrainSettings
from dpgan.data import order
from dpgan.data.loader import Source, batches
from dpgan.data.prepare import Split, open_prepared
from dpgan.files import write_json
from dpgan.hardware import device_name
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import Generator
from dpgan.training.assemble import Training
from dpgan.training.build import Job, build
from dpgan.training.checkpoint import Checkpoints, save_state, starting_point
from dpgan.training.guard import Action, Guard, NonFiniteError
from dpgan.training.holdout import Holdout
from dpgan.training.meter import Meter
from dpgan.training.strategy import agreed, rank, world_size

# Real images behind the BatchNorm statistics of an EMA generator that is scored or saved.
STATISTICS_IMAGES = 256
# Steps in a row that may be left out because gradients are not finite; fp16 needs some to find its loss scale.
PATIENCE, PATIENCE_FP16 = 3, 24


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
    ends after the current step with a checkpoint and no result. Raises NonFiniteError, on every worker, where
    gradients are not finite numbers again after training went back to a checkpoint.
    """
    s, run, seed = job.settings, job.run, job.seed
    data = open_prepared(job.prepared, "train")
    samples, held_out = order.split_holdout(seed, len(data.ids), s.holdout)
    training = build(job, device, data, samples)
    holdout = Holdout(data, held_out, seed, device)
    checkpoints = job.checkpoints()
    seen, best = _resume(job, checkpoints, training)
    starts = _note_start(job.folder) if rank() == 0 else []
    if rank() == 0 and seen:
        report(seen, s.images, f"goes on from the checkpoint at {seen} images")

    total_steps = math.ceil(s.images / s.batch)
    source = partial(Source, data.images, data.labels, samples, seed=seed, batch=s.batch, accumulate=s.accumulate,
                     rank=rank(), workers=world_size(), flip=s.flip, crop=s.crop)  # fmt: skip
    meter, guard, stopped = Meter(), Guard(PATIENCE_FP16 if s.precision == "fp16" else PATIENCE), False
    while seen < s.images and not stopped:
        steps = range(seen // s.batch, total_steps)
        for batch in batches(source(total=s.images, steps=steps), device, threads=run.cpus_per_worker):
            meter.data_arrived()
            skipped = training.step.skipped
            terms = training.step(
                batch.images,
                batch.labels,
                lambda draw, at=batch.positions: _noise(seed, at, s.noise_channels, device, draw),  # type: ignore[misc]
                torch.from_numpy(order.labelmix_table(seed, batch.step, job.card.num_classes)).to(device),
                progress=batch.step / total_steps,
                sizes=batch.sizes,
                shift=order.shift_at(seed, batch.step, s.perceptual_shift),
            )
            moved = training.step.skipped == skipped
            seen = min((batch.step + 1) * s.batch, s.images)  # the last batch may be smaller
            meter.step_done(terms if moved else {}, seen - batch.step * s.batch)
            action = guard.judge(moved)
            if action is not Action.GO_ON:
                checkpoints.wait()
                agreed(False, device)  # a meeting: what rank 0 was writing is there for all of them
                if action is Action.GIVE_UP or starting_point(checkpoints, job.fork) is None:
                    raise NonFiniteError(_not_finite(job, data, samples, range(batch.step * s.batch, seen)))
                seen, best = _resume(job, checkpoints, training)
                break
            finished = seen == s.images
            stopped = not finished and agreed(rank() == 0 and stop(), device)

            if finished or _due(seen, run.log_images, s.batch):
                values = meter.read() | {
                    "throughput/restarts": len(starts) - 1,
                    "throughput/skipped_steps": guard.total,
                }
                if rank() == 0:
                    tracker.metrics(values, seen)
                    report(seen, s.images, _note(values))
            better = False
            if finished or _due(seen, s.evaluate_images, s.batch):
                candidate = _with_statistics(training.average, source, batch.step, device, s)
                scores, grid = holdout.score(candidate, job.card)
                kid = scores["holdout/kid_lite0"] if math.isfinite(scores["holdout/kid_lite0"]) else math.inf
                better = best is None or kid < best["kid"]
                if better:
                    best = {"kid": kid, "images": seen}
                if rank() == 0:
                    tracker.metrics(scores, seen)
                    tracker.image("holdout/label_real_generated", grid, seen)
                    _keep_candidates(job.folder / "candidates", candidate, better)
                meter.restart()
            if moved and not finished and (stopped or better or _due(seen, run.checkpoint_images, s.batch)):
                state = training.state()
                if rank() == 0:
                    checkpoints.save(seen, state, int(best["images"]) if best else None, {**job.facts, "best": best})
            if stopped:
                break
    if rank() == 0:
        checkpoints.wait()
        if not stopped:
            result = {
                "images": seen,
                "images_per_s": meter.rate(),
                "started": starts[0],
                "seconds": round((datetime.now(UTC) - datetime.fromisoformat(starts[0])).total_seconds()),
                "restarts": len(starts) - 1,
                "hardware": {"device": device_name(device), "workers": world_size(), "cpus_each": run.cpus_per_worker},
                "best": best,
            }
            write_json(job.folder / "result.json", result)


def _resume(job: Job, checkpoints: Checkpoints, training: Training) -> tuple[int, dict[str, float] | None]:
    """Restore the checkpoint that the run starts from: (images seen, best hold-out score of this run so far)."""
    found = starting_point(checkpoints, job.fork)
    if found is None:
        return 0, None
    training.load(found)
    return found.images, found.facts["best"] if found.path.parent == checkpoints.folder else None


def _note_start(folder: Path) -> list[str]:
    """Note that the run starts; when it did so up to now, in UTC."""
    with (folder / "starts").open("a+") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}\n")
        file.seek(0)
        return file.read().split()


def _not_finite(job: Job, data: Split, samples: np.ndarray, positions: range) -> str:
    """What to say of the step at `positions`, counted over all workers."""
    ids = [data.ids[samples[order.sample_at(job.seed, p, len(samples))]] for p in positions]
    return (
        f"training came to gradients that are not finite at {positions.stop} images; going back to a checkpoint did "
        f"not mend it. The samples of that step: {', '.join(map(str, ids))}. Look at them, or train with lower rates "
        "(train.lr_generator, train.lr_discriminator) or with train.precision fp32"
    )


def _note(values: Mapping[str, float]) -> str:
    """The losses for a progress line."""
    losses = "  ".join(f"{network} {values[key]:.2f}" for network in "GD" if (key := f"loss/{network}_total") in values)
    skipped = values["throughput/skipped_steps"]
    return losses + (f"  {skipped:.0f} steps skipped: gradients not finite" if skipped else "")


def _noise(seed: int, at: Sequence[int], channels: int, device: torch.device, draw: int = 0) -> Tensor:
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
        for b in batches(source(total=steps.stop * s.batch, steps=steps), device)
    )
    recollect_statistics(candidate, inputs)
    return candidate.eval()


def _keep_candidates(folder: Path, candidate: Generator, better: bool) -> None:
    """Save the candidate as `last`, and as `best` where its hold-out KID is the lowest so far."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("last", "best") if better else ("last",):
        save_state(candidate, folder / f"{name}.safetensors")

"""The training loop of one worker. N workers run it together; rank 0 alone decides, writes and reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dpgan import identities
from dpgan.data import order
from dpgan.data.loader import Batch, Source, batches
from dpgan.data.prepare import data_hash, open_prepared
from dpgan.files import write_json
from dpgan.hardware import device_name
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import Generator
from dpgan.training.agreement import agreed_precision, check_same, same_checkpoint
from dpgan.training.build import Job, build
from dpgan.training.candidates import candidate_path, keep_candidates
from dpgan.training.checkpoint import Checkpoint
from dpgan.training.guard import Action, Guard, NonFiniteError
from dpgan.training.holdout import KID, Holdout
from dpgan.training.meter import Meter
from dpgan.training.start import changes_since, decide_start, is_own
from dpgan.training.strategy import agreed, on_rank_0, rank, world_size

# Real images behind the BatchNorm statistics of an EMA generator that is scored or saved.
STATISTICS_IMAGES = 256
# Steps in a row that may be left out because gradients are not finite; fp16 needs some to find its loss scale.
PATIENCE, PATIENCE_FP16 = 3, 24

Report = Callable[[int, int, str], None]


class Tracker(Protocol):
    """What the loop logs, by images seen."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, key: str, image: np.ndarray, step: int) -> None: ...


def train(
    job: Job,
    device: torch.device,
    tracker: Tracker,
    report: Report,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Train until `settings.images` real images were seen; resume from the newest complete checkpoint.

    Leaves the candidates `last` and `best` (`candidate_path`) and `folder/result.json`. When rank 0's `stop` says so,
    it ends after the current step with a checkpoint and no result. `say` gets a line before what takes long; `beat` is
    called at every step and evaluation.

    Raises AgreedError on every worker if the workers do not agree, or if gradients are not finite numbers again after
    training went back to a checkpoint (NonFiniteError).
    """
    loop = Loop(job, device, tracker, report, stop, say, beat)
    loop.run()
    on_rank_0(loop.checkpoints.wait if loop.stopped else loop.finish)


class Loop:
    """A training on one worker, from its start to its result."""

    def __init__(
        self,
        job: Job,
        device: torch.device,
        tracker: Tracker,
        report: Report,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self.job, self.device, self.tracker, self.report, self.stop = job, device, tracker, report, stop
        self.beat = beat
        self.say = say if rank() == 0 else lambda _: None
        facts = {"data": data_hash(job.prepared), "code": identities.training_code(), "torch": torch.__version__}
        check_same(job.same_everywhere(), facts)
        self.data = open_prepared(job.prepared, "train")
        pairs = len(self.data.ids)
        self.samples, held_out = order.split_holdout(job.seed, pairs, job.settings.held_out(pairs))
        self.checkpoints = job.checkpoints()
        start = self._agreed_start()
        own = start is not None and is_own(job, start)
        recorded = start.facts.get("precision") if start is not None and own else None
        self.precision = agreed_precision(job.settings.precision, recorded, device)
        self.say(f"trains in {self.precision}" + (", as it began" if recorded else ""))
        s = self.settings = job.settings.model_copy(update={"precision": self.precision})
        self.total_steps = math.ceil(s.images / s.batch)
        self.source = partial(Source, self.data.images, self.data.labels, self.samples, seed=job.seed, batch=s.batch,
                              accumulate=s.accumulate, rank=rank(), workers=world_size(), flip=s.flip,
                              crop=s.crop)  # fmt: skip
        self.say("builds the networks" + (" and calibrates the perceptual loss" if s.losses.perceptual else ""))
        self.training = build(replace(job, settings=s), device, self.data, self.samples)
        self.say(f"computes the features of the photos that are held out ({len(held_out)})")
        self.holdout = Holdout(self.data, held_out, job.seed, device)
        self.meter, self.guard = Meter(), Guard(PATIENCE_FP16 if self.precision == "fp16" else PATIENCE)
        self.starts = on_rank_0(lambda: _note_start(job.folder, job.facts.get("git.commit", "unknown")))
        self.stopped = self.owes_checkpoint = False
        self.seen, self.rate_before, self.owes_evaluation = 0, 0.0, False
        self.best: dict[str, float] | None = None
        if start is not None:
            self._restore(start)

    def _agreed_start(self) -> Checkpoint | None:
        """Rank 0 decides where training starts, and every worker finds exactly that."""
        self.say("looks for a checkpoint and checks its hashes")
        return same_checkpoint(on_rank_0(lambda: decide_start(self.job)))

    def _restore(self, start: Checkpoint) -> None:
        """Train on from a checkpoint; `best` and what it owes are its own run's, not a fork's."""
        self.say(f"loads {start.path}")
        if changed := changes_since(self.job, start):
            self.say(f"resumes under other code than the checkpoint's: {'; '.join(changed)}")
        self.training.load(start)
        self.seen, self.owes_checkpoint = start.images, False
        facts: Mapping[str, Any] = start.facts if is_own(self.job, start) else {}
        self.best, self.owes_evaluation = facts.get("best"), facts.get("owes_evaluation", False)
        self.rate_before = facts.get("images_per_s", 0.0)
        best = self.best
        if best and not on_rank_0(lambda: candidate_path(self.job.folder, int(best["images"])).exists()):
            self.say(f"the candidate at {best['images']} images is missing: the best one is chosen anew")
            self.best = None
        if rank() == 0:
            self.report(self.seen, self.settings.images, f"resumes from the checkpoint at {self.seen} images")

    def run(self) -> None:
        """Steps, until all images were seen or a stop was asked for; back at a checkpoint they start anew."""
        if self.owes_evaluation:
            self._evaluate()
        while self.seen < self.settings.images and not self.stopped:
            self._steps()

    def _steps(self) -> None:
        s = self.settings
        steps = range(self.seen // s.batch, self.total_steps)
        self.meter.restart()
        for batch in batches(self.source(total=s.images, steps=steps), self.device, self.job.run.cpus_per_worker):
            self.meter.data_arrived()
            self.beat()
            moved, terms = self._step(batch)
            self.seen = min((batch.step + 1) * s.batch, s.images)  # the last batch may be smaller
            self.stopped = self.seen < s.images and self._asked_to_stop()
            self.meter.step_done(terms if moved else {}, self.seen - batch.step * s.batch)
            action = self.guard.judge(moved)
            if action is not Action.GO_ON:
                self._go_back(action, range(batch.step * s.batch, self.seen))
                return
            self._log_evaluate_save(moved)
            if self.stopped:
                return
            self.meter.asks_for_data()

    def _step(self, batch: Batch) -> tuple[bool, dict[str, Tensor]]:
        """One step: whether both networks were updated, and this worker's part of the losses."""
        s, seed, skipped = self.settings, self.job.seed, self.training.step.skipped
        terms = self.training.step(
            batch.images,
            batch.labels,
            partial(_noise, seed, batch.positions, s.noise_channels, self.device),
            torch.from_numpy(order.labelmix_table(seed, batch.step, self.job.card.num_classes)).to(self.device),
            progress=batch.step / self.total_steps,
            sizes=batch.sizes,
            shift=order.shift_at(seed, batch.step, s.perceptual_shift),
        )
        return self.training.step.skipped == skipped, terms

    def _asked_to_stop(self) -> bool:
        return agreed(rank() == 0 and self.stop(), self.device)

    def _go_back(self, action: Action, positions: range) -> None:
        """To the newest checkpoint; NonFiniteError if that was in vain, or if there is none."""
        on_rank_0(self.checkpoints.wait)
        start = None if action is Action.GIVE_UP else self._agreed_start()
        if start is None:
            raise NonFiniteError(self._not_finite(positions))
        self.stopped = False  # asked again after the next step
        self._restore(start)

    def _log_evaluate_save(self, moved: bool) -> None:
        """What is due after a step. Asked to stop, the checkpoint comes first, and owes the evaluation."""
        s, run, finished = self.settings, self.job.run, self.seen == self.settings.images
        due = partial(_due, self.seen, batch=s.batch)
        if finished or due(run.log_images):
            self._log()
        self.owes_evaluation |= finished or due(s.evaluate_images)
        if self.owes_evaluation and not self.stopped:
            self._evaluate()
        lasting = run.keep_every is not None and due(run.keep_every)
        self.owes_checkpoint |= lasting or due(run.checkpoint_images)
        if self.stopped:
            # After a skipped step the weights are as good as before it, or not numbers at all.
            if moved or not agreed(not self.training.finite(), self.device):
                self._save()
        elif moved and (lasting if finished else self.owes_checkpoint):  # a skipped step leaves it to the next one
            self._save()

    def _log(self) -> None:
        values = self.meter.read() | {
            "throughput/restarts": len(self.starts) - 1,
            "throughput/skipped_steps": self.guard.total,
        }
        if rank() == 0:
            self.tracker.metrics(values, self.seen)
            self.report(self.seen, self.settings.images, _note(values))

    def _evaluate(self) -> None:
        """Score the average, and keep it as a candidate. Asked to stop meanwhile, it is left to the next start."""
        self.beat()
        candidate = self._with_statistics()
        if self.stopped:
            return
        scores, grid = self.holdout.score(candidate, self.job.card)
        kid = on_rank_0(lambda: scores.get(KID, math.inf))  # on other hardware it may be rounded otherwise
        kid = kid if math.isfinite(kid) else math.inf
        if self.best is None or kid < self.best.get("kid", math.inf) or KID not in scores:  # unscored: the newest
            self.best = {**({"kid": kid} if math.isfinite(kid) else {}), "images": self.seen}
            self.owes_checkpoint = True
        best = int(self.best["images"])
        if rank() == 0:
            self.tracker.metrics(scores, self.seen)
            self.tracker.image("holdout/label_real_generated", grid, self.seen)

        def keep() -> None:
            self.checkpoints.wait()  # what it names as best must stay
            named = self.checkpoints.best_ones() | {best}
            keep_candidates(self.job.folder, candidate, self.seen, named)

        on_rank_0(keep)
        self.owes_evaluation = False

    def _with_statistics(self) -> Generator:
        """A copy of the EMA generator with BatchNorm statistics of its own, in eval mode; unless asked to stop."""
        s, seed = self.settings, self.job.seed
        candidate = copy.deepcopy(self.training.average)
        step = math.ceil(self.seen / s.batch) - 1
        steps = range(step, step + max(1, STATISTICS_IMAGES // s.batch))

        def inputs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches(self.source(total=steps.stop * s.batch, steps=steps), self.device):
                self.stopped = self._asked_to_stop()
                if self.stopped:
                    return
                yield batch.labels, _noise(seed, batch.positions, s.noise_channels, self.device, draw=2)

        recollect_statistics(candidate, inputs())
        return candidate.eval()

    def _save(self) -> None:
        """A checkpoint, written in the background; a full disk ends the training on all workers."""
        state = self.training.state()
        facts = {
            **self.job.facts,
            "best": self.best,
            "precision": self.precision,
            "owes_evaluation": self.owes_evaluation,
            "images_per_s": self.meter.rate(),
        }
        best = int(self.best["images"]) if self.best else None
        on_rank_0(lambda: self.checkpoints.save(self.seen, state, best, facts))
        self.owes_checkpoint = False

    def finish(self) -> None:
        """Write `result.json`, after everything else."""
        self.checkpoints.wait()
        result = {
            "images": self.seen,
            "images_per_s": self.meter.rate() or self.rate_before,
            "started": self.starts[0][0],
            "seconds": round((datetime.now(UTC) - datetime.fromisoformat(self.starts[0][0])).total_seconds()),
            "commits": list(dict.fromkeys(commit for _, commit in self.starts)),
            "restarts": len(self.starts) - 1,
            "hardware": {
                "device": device_name(self.device),
                "workers": world_size(),
                "cpus_each": self.job.run.cpus_per_worker,
            },
            "precision": self.precision,
            "best": self.best,
        }
        write_json(self.job.folder / "result.json", result)

    def _not_finite(self, positions: range) -> str:
        """What to say of the step at `positions`, counted over all workers."""
        count = len(self.samples)
        ids = [self.data.ids[self.samples[order.sample_at(self.job.seed, p, count)]] for p in positions]
        return (
            f"training came to gradients that are not finite at {positions.stop} images; going back to a checkpoint "
            f"did not fix it. The samples of that step: {', '.join(map(str, ids))}. Look at them, or train with lower "
            "rates (train.lr_generator, train.lr_discriminator) or with train.precision fp32"
        )


def _note_start(folder: Path, commit: str) -> list[tuple[str, str]]:
    """Note that the run starts; when it did so up to now, in UTC, and under which commit."""
    with (folder / "starts").open("a+") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {commit}\n")
        file.seek(0)
        lines = [line.split() for line in file]
    return [(time, commit) for time, commit in lines]


def _note(values: Mapping[str, float]) -> str:
    """The losses for a progress line."""
    losses = "  ".join(f"{network} {values[key]:.2f}" for network in "GD" if (key := f"loss/{network}_total") in values)
    skipped = values["throughput/skipped_steps"]
    return losses + (f"  {skipped:.0f} steps skipped: gradients not finite" if skipped else "")


def _noise(seed: int, at: Sequence[int], channels: int, device: torch.device, draw: int = 0) -> Tensor:
    return torch.from_numpy(order.noise_at(seed, at, channels, draw)).to(device)


def _due(seen: int, every: int, batch: int) -> bool:
    """Whether the last step passed a multiple of `every` images."""
    return seen // every != (seen - batch) // every

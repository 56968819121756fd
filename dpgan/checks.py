"""Which settings do not go together, or not with the data, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dpgan.errors import UserError

if TYPE_CHECKING:
    from dpgan.config import EvaluateSettings, JudgeSettings, Params, RunSettings, TrainSettings
    from dpgan.labels import Card

STRIDE = 32  # of the networks: sides of what generators paint are its multiples
DRN105_SIZES = ((256, 512), (1024, 2048))  # of its two protocols: height, width


def check_losses(s: TrainSettings, path: Path = Path("params.yaml")) -> None:
    """UserError where networks and losses do not go together, or where something would never be trained."""
    patch, w = s.discriminator == "patch", s.losses
    scored = w.patch > 0 and s.patch_at != "none"
    mistakes = [
        (s.generator != "dp" and not s.concat_s0,
         f"concat_s0 is of the dp generator; {s.generator} has no s_0: leave it out"),
        (patch and (w.pixel or w.labelmix),
         "losses.pixel and losses.labelmix need a discriminator that labels pixels: set both to 0, or discriminator "
         "to dp or oasis"),
        (patch and (s.patch_at != "encoder" or s.feature_at != "encoder"),
         "a patch discriminator is an encoder alone: leave patch_at and feature_at out; losses.feature: 0 leaves "
         "feature matching out"),
        (patch and (not scored or s.patch_gradient == "released"),
         "the patch loss alone trains a patch discriminator: losses.patch must be above 0, and patch_gradient keep"),
        (s.discriminator == "oasis" and s.patch_at != "none",
         "an oasis discriminator has no patch heads: leave patch_at out; with them it is discriminator: dp"),
        (not patch and not w.pixel,
         f"losses.pixel 0: nothing else teaches a {s.discriminator} discriminator its labels; discriminator: patch "
         "does without"),
    ]  # fmt: skip
    for wrong, what in mistakes:
        if wrong:
            raise UserError(f"{path}: train: {what}")


def held_out_note(settings: TrainSettings, pairs: int) -> str | None:
    """What to say of the pairs that are held out if they are fewer than `train.holdout`."""
    held = settings.held_out(pairs)
    if held == settings.holdout:
        return None
    asked = f"train.holdout {settings.holdout}"
    return f"{held} of {pairs} training pairs are held out, not {asked}, which is more than a third"


class Pairs(NamedTuple):
    """What of a dataset decides whether it can be trained on and scored."""

    train: int
    val: int
    scored: bool = True  # whether a validation label map has a pixel of an evaluated class
    instances: bool = False  # whether all validation pairs have an instance map


def check_fits(params: Params, settings: TrainSettings, card: Card, pairs: Pairs) -> None:
    """UserError with all that `misfits` finds."""
    refuse(misfits(params, settings, card, pairs))


def refuse(found: list[str]) -> None:
    """UserError with all of `found`, a line each, if there is something."""
    if found:
        raise UserError("\n".join(found))


def misfits(params: Params, settings: TrainSettings, card: Card, pairs: Pairs) -> list[str]:
    """Every condition of number and size that judge, train or evaluate would refuse, a sentence with its remedy each.

    The first stage asks, and each that takes long, so that nothing is refused after hours; `dpgan data` asks, so that
    what it calls fit is. `settings` are those of `params`; if `params.train` is null, nothing is trained.
    """
    training = [] if params.train is None else of_training(settings, params.run, card.size, pairs.train)
    return of_judge(params.judge) + training + of_scoring(params.evaluate, card, pairs)


def _true(mistakes: list[tuple[bool, str]]) -> list[str]:
    return [what for wrong, what in mistakes if wrong]


def of_judge(judge: JudgeSettings) -> list[str]:
    """What the stage judge would refuse."""
    size, where = judge.size, f"params.yaml: judge.size {list(judge.size or ())}"
    trained = judge.kind == "trained" and size is not None
    return _true([
        (judge.kind == "drn105" and size not in (None, *DRN105_SIZES),
         f"{where}: the protocols of drn105 work at {' or '.join(str(list(each)) for each in DRN105_SIZES)}"),
        (judge.kind == "upernet101" and size is not None,
         f"{where}: the protocol of upernet101 has five of its own; leave it out"),
        (trained and min(size or ()) < STRIDE, f"{where}: height and width must be {STRIDE} at least"),
        (trained and judge.batch == 1 and max(size or ()) <= STRIDE,
         f"{where}: one photo of it leaves BatchNorm a single value; take a larger judge.batch or judge.size"),
    ])  # fmt: skip


def of_training(s: TrainSettings, run: RunSettings, size: tuple[int, int], pairs: int) -> list[str]:
    """What the stage train would refuse with `pairs` training pairs of `size`."""
    crop, last = s.crop or size, s.images % s.batch or s.batch
    at_once = f"run.workers {run.workers}" + (f" x train.accumulate {s.accumulate}" if s.accumulate > 1 else "")
    least, held = run.workers * s.accumulate, s.held_out(pairs)
    mistakes = [
        (s.batch < least, f"train.batch {s.batch} is less than {at_once}: someone would have no image; take a larger "
         "batch, or fewer workers"),
        (s.batch >= least > last,
         f"the last batch holds {last} images (train.images {s.images} modulo train.batch {s.batch}), "
         f"less than {at_once}: make train.images {s.images - last + least}, or a multiple of the batch"),
        (last >= least and last // s.accumulate == 1 and max(crop) <= 128,
         f"a micro-batch of one image of {list(crop)} leaves BatchNorm a single value: take a larger train.batch, a "
         "smaller train.accumulate, or other train.images"),
        (run.zero_stage > 0 and run.strategy != "deepspeed",
         f"run.zero_stage {run.zero_stage} needs run.strategy deepspeed, not {run.strategy}"),
        (s.precision == "fp16" and run.strategy == "deepspeed",
         "train.precision fp16 does not go with run.strategy deepspeed, whose loss scale stays where it is after an "
         "overflow; take bf16 or run.strategy ddp"),
        (pairs > 1 and held < run.workers,  # fewer pairs than 2 are `of_scoring`'s
         f"{held} of {pairs} training pairs are held out (train.holdout {s.holdout}), less than run.workers "
         f"{run.workers}, each of which scores one at least: set run.workers to {held}, or add photos"),
        (any(c % STRIDE or c > whole for c, whole in zip(crop, size, strict=True)),
         f"train.crop {list(crop)}: height and width must be multiples of {STRIDE} within {list(size)}"),
    ]  # fmt: skip
    return [f"params.yaml: {what}" for what in _true(mistakes)]


def of_scoring(evaluate: EvaluateSettings, card: Card, pairs: Pairs) -> list[str]:
    """What the stage evaluate would refuse."""
    height, width = card.size
    odd = [factor for factor in evaluate.resolutions if any(side * factor % STRIDE for side in card.size)]
    few = [(name, count) for name, count in (("training", pairs.train), ("validation", pairs.val)) if count < 2]
    return [
        *(f"the {name} split has {count} photo{'s' * (not count)}; FID and KID compare distributions and need 2 at "
          "least: add photos, or take some from the other split" for name, count in few),
        *(f"params.yaml: evaluate.resolutions: {factor:g} x {height}x{width} is {factor * height:g}x"
          f"{factor * width:g}, and generators paint at multiples of {STRIDE} only; leave it out" for factor in odd),
        *_true([
            (evaluate.objects and not pairs.instances and not card.things.any(),
             f"params.yaml: evaluate.objects: {card.name} has no instance maps, and its card marks no class as "
             "`thing: true`: there is nothing to crop; mark the countable classes, or leave it out"),
            (not pairs.scored,
             f"data/{card.name}/dataset.yaml: the validation label maps have no pixel of a class with "
             "`evaluate: true`, so mIoU has nothing to measure; mark classes that they hold, or take another split"),
        ]),
    ]  # fmt: skip

"""Which settings do not go together, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpgan.errors import UserError

if TYPE_CHECKING:
    from dpgan.config import RunSettings, TrainSettings


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


def tell_held_out(settings: TrainSettings, pairs: int) -> str | None:
    """What to say of the pairs that are held out if they are fewer than `train.holdout`."""
    held = settings.held_out(pairs)
    if held == settings.holdout:
        return None
    return (
        f"{held} of {pairs} training pairs are held out, not train.holdout {settings.holdout}, which would leave less "
        f"than a batch of {settings.batch} to train on"
    )


def check_fits(settings: TrainSettings, run: RunSettings, size: tuple[int, int], pairs: int) -> None:
    """UserError where the settings do not go together, or do not go with `pairs` training pairs of `size`."""
    s, crop = settings, settings.crop or size
    last = s.images % s.batch or s.batch
    at_once = f"run.workers {run.workers}" + (f" x train.accumulate {s.accumulate}" if s.accumulate > 1 else "")
    least, held = run.workers * s.accumulate, s.held_out(pairs)
    mistakes = [
        (s.batch < least, f"train.batch {s.batch} is less than {at_once}: someone would have no image"),
        (last < least, f"the last batch holds {last} images (train.images {s.images} modulo train.batch {s.batch}), "
         f"less than {at_once}: make train.images {s.images - last + least}, or a multiple of the batch"),
        (last // s.accumulate == 1 and max(crop) <= 128, f"a micro-batch of one image of {list(crop)} leaves "
         "BatchNorm a single value: take a larger train.batch, a smaller train.accumulate, or other train.images"),
        (run.zero_stage and run.strategy != "deepspeed",
         f"run.zero_stage {run.zero_stage} needs run.strategy deepspeed, not {run.strategy}"),
        (s.precision == "fp16" and run.strategy == "deepspeed",
         "train.precision fp16 does not go with run.strategy deepspeed, whose loss scale stays where it is after an "
         "overflow; take bf16 or run.strategy ddp"),
        (pairs < 2, f"the training split has {pairs} pair, and train.holdout takes one at least: add photos"),
        (pairs > 1 and held < run.workers,
         f"{held} of the {pairs} training pairs are held out (train.holdout {s.holdout}), less than run.workers "
         f"{run.workers}, each of which scores one at least: set run.workers to {held}, or add photos"),
        (any(c % 32 or c > whole for c, whole in zip(crop, size, strict=True)),
         f"train.crop {list(crop)}: height and width must be multiples of 32 within {list(size)}"),
    ]  # fmt: skip
    for wrong, what in mistakes:
        if wrong:
            raise UserError(f"params.yaml: {what}")

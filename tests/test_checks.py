"""What judge, train and evaluate would refuse for its number or size: a situation a row, and what is said of it.

That every stage and command says the same is in `test_situations.py`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
from raw_pairs import make_card

from dpgan.checks import STRIDE, Pairs, check_fits, held_out_note, misfits
from dpgan.config import Params, TrainSettings, train_settings
from dpgan.errors import UserError
from dpgan.labels import Card
from dpgan.models.generators.blocks import LATENT_STRIDE


class Row(NamedTuple):
    """Settings, pairs, and what is said of them; None if they fit."""

    params: dict[str, Any]
    says: str | None
    pairs: Pairs = Pairs(24, 8)
    size: tuple[int, int] = (32, 64)


def train(workers: int = 2, **settings: Any) -> dict[str, Any]:
    """Two workers that train 24 images in batches of 4, and changes of it."""
    return {"train": {"images": 24, "batch": 4, **settings}, "run": {"workers": workers}}


def run(**settings: Any) -> dict[str, Any]:
    return {**train(), "run": {"workers": 2, **settings}}


BN = r"a micro-batch of one image of \[32, 64\] leaves BatchNorm a single value: take a larger train\.batch"
ROWS = {
    "the defaults": Row({}, None),
    "the papers' batch for two workers": Row(train(batch=5, images=23), None),
    "nothing is trained": Row({"train": None, "run": {"workers": 9}}, None),
    "batch below workers": Row(train(batch=1), r"train\.batch 1 is less than run\.workers 2: .*take a larger batch"),
    "batch below micro-batches": Row(train(accumulate=3), "train.batch 4 is less than run.workers 2 x train.ac"),
    "last batch below workers": Row(train(images=5), r"the last batch holds 1 images \(train\.images 5 modulo train\."
                                    r"batch 4\), less than run\.workers 2: make train\.images 6, or a multiple"),
    "last batch of one image": Row(train(1, images=9), BN),
    "micro-batches of one image": Row(train(1, accumulate=4), BN),
    "crop of odd sides": Row(train(crop=(32, 48)), r"train\.crop \[32, 48\]: .* multiples of 32 within \[32, 64\]"),
    "crop beyond the photos": Row(train(crop=(64, 64)), r"train\.crop \[64, 64\]"),
    "zero_stage without deepspeed": Row(run(zero_stage=1), r"zero_stage 1 needs run\.strategy deepspeed, not ddp"),
    "fp16 with deepspeed": Row(
        {**train(precision="fp16"), "run": {"strategy": "deepspeed"}}, "take bf16 or run.strategy ddp"
    ),
    "three pairs for two workers": Row({}, None, Pairs(3, 2)),
    "two pairs for one worker": Row(train(1), None, Pairs(2, 2)),
    "two pairs for two workers": Row({}, r"1 of 2 training pairs are held out \(train\.holdout 64\), less than run\."
                                     r"workers 2, .*: set run\.workers to 1, or add photos", Pairs(2, 2)),
    "holdout below workers": Row(train(4, holdout=3), r"3 of 24 training pairs are held out \(train\.holdout 3\)"),
    "one training pair": Row({}, r"the training split has 1 photo; .* need 2 at least: add photos", Pairs(1, 8)),
    "no training pair": Row({}, "the training split has 0 photos; ", Pairs(0, 8)),
    "one validation pair": Row({}, r"the validation split has 1 photo; .* need 2 at least: add photos", Pairs(24, 1)),
    "nothing to score": Row({}, r"tiny/dataset\.yaml: .* no pixel of a class with `evaluate: true`.*mark classes",
                            Pairs(24, 8, scored=False)),
    "resolution of odd sides": Row({"evaluate": {"resolutions": [2, 0.5]}}, r"evaluate\.resolutions: 0\.5 x 32x64 is "
                                   "16x32, and generators paint at multiples of 32 only; leave it out"),
    "resolutions that fit": Row({"evaluate": {"resolutions": [0.5]}}, None, size=(64, 64)),
    "objects of nothing": Row({"evaluate": {"objects": True}}, "there is nothing to crop; mark the countable classes"),
    "objects of instance maps": Row({"evaluate": {"objects": True}}, None, Pairs(24, 8, instances=True)),
    "size of drn105": Row({"judge": {"kind": "drn105", "size": [512, 1024]}}, r"drn105 work at \[256, 512\] or \[1024"),
    "size of upernet101": Row({"judge": {"kind": "upernet101", "size": [64, 64]}}, "five of its own; leave it out"),
    "judge of no size": Row({"judge": {"size": [0, 64]}}, r"judge\.size \[0, 64\]: height and width must be 32 at"),
    "judge of single photos": Row({"judge": {"size": [32, 32], "batch": 1}}, r"BatchNorm a single value; take a larger "
                                  r"judge\.batch or judge\.size"),
}  # fmt: skip


def read(row: Row) -> tuple[Params, TrainSettings, Card, Pairs]:
    params, card = Params(dataset="tiny", raw="raw", **row.params), make_card(size=row.size)
    return params, train_settings(params, card.preset), card, row.pairs


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_does_not_fit_is_one_sentence(row: Row) -> None:
    found = misfits(*read(row))
    assert len(found) == (row.says is not None), found
    assert re.search(row.says or "", "".join(found)), found


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        check_fits(*read(Row({**train(5), "evaluate": {"resolutions": [0.5]}}, "", Pairs(24, 1))))
    assert len(str(error.value).splitlines()) == 3


def test_generators_paint_at_multiples_of_their_stride() -> None:
    assert STRIDE == LATENT_STRIDE


@pytest.mark.parametrize(
    ("pairs", "held", "says"),
    [
        (2975, 64, None),
        (192, 64, None),
        (191, 63, "63 of 191 training pairs are held out, not train.holdout 64, which is more than a third"),
        (20, 6, "6 of 20 training pairs"),
        (8, 2, "2 of 8 training pairs"),
        (3, 2, "2 of 3 training pairs"),
        (2, 1, "1 of 2 training pairs"),
    ],
)
def test_fewer_pairs_of_a_small_set_are_held_out(pairs: int, held: int, says: str | None) -> None:
    settings = TrainSettings.model_validate({"preset": "test", "images": 8, "batch": 8})
    assert settings.held_out(pairs) == held
    note = held_out_note(settings, pairs)
    assert note is None if says is None else says in str(note)
    assert TrainSettings.model_validate({"preset": "test", "images": 8, "batch": 8, "holdout": 2}).held_out(pairs) <= 2

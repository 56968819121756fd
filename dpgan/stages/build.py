"""Where the stages leave what they made, and how they read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from dpgan.checks import check_fits, misfits
from dpgan.config import BUILD, Params, load_params, need, train_settings
from dpgan.errors import UserError
from dpgan.files import read_text
from dpgan.labels import Card, card_path, load_card

if TYPE_CHECKING:
    import pandas as pd

    from dpgan.data.prepare import Split
    from dpgan.data.validation import Report


class Accepted(BaseModel):
    """What is compared with the accepted version, of `facts.summary`."""

    pairs: dict[str, int]
    shares: dict[str, dict[str, float]]


INDEX = BUILD / "index.parquet"
SCANNED = BUILD / "scanned.sqlite"  # rows of earlier scans; no out of dvc.yaml, so that DVC leaves it
VALIDATION = BUILD / "validation"
PREPARED = BUILD / "prepared"
JUDGE, JUDGE_SCORES = BUILD / "judge.safetensors", BUILD / "judge.json"
TRAINED, TRAIN_SCORES = BUILD / "train", BUILD / "train.json"
EVALUATION, SCORES = BUILD / "evaluation", BUILD / "scores.json"
REFERENCES = BUILD / "references"  # features of real photos; no out of dvc.yaml either
PROMOTION = BUILD / "promotion.json"


def setup() -> tuple[Params, Card]:
    """params.yaml and the dataset's card; every mistake in them comes up before a stage starts."""
    params = load_params()
    card = load_card(params.dataset)
    train_settings(params, card.preset)
    return params, card


def checked(params: Params, frame: pd.DataFrame, card: Card, accepted: Mapping[str, Any], docs: Path) -> Report:
    """An index checked against the data contract, and what is left of it against the settings of later stages."""
    from dpgan.data.facts import offered
    from dpgan.data.validation import validate

    report = validate(frame, card, accepted, docs)
    left = frame[~frame["sample_id"].isin(report.quarantined)]
    unfit = misfits(params, train_settings(params, card.preset), card, offered(left, card))
    return replace(report, stops=[*report.stops, *unfit])


def raw_pointer(raw: Path) -> Path:
    """The file by which DVC tracks the folder `raw`, where it does."""
    return raw.with_name(f"{raw.name}.dvc")


def need_raw(params: Params, card: Card) -> None:
    """UserError where the folder of the raw pairs is not there: what to download, from where, and where to put it."""
    raw = Path(params.raw)
    if card.toyscapes or raw.is_dir():  # the former is rendered
        return
    tracked = raw_pointer(raw)
    if tracked.exists():
        raise UserError(f"{params.raw}: not there yet; `dvc pull {tracked}` fetches it")
    what = f"download {card.obtain}, unzip it there" if card.obtain else "put the pairs there"
    raise UserError(
        f"{params.raw}: no raw pairs of {card.name}; {what}, or name their folder in params.yaml: raw. "
        f"{card_path(card.name).with_name('README.md')} says how the files are laid out"
    )


def read_json(path: Path, stage: str) -> dict[str, Any]:
    """The JSON that `stage` leaves at `path`."""
    try:
        content: dict[str, Any] = json.loads(read_text(need(path, stage)))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); `dvc repro --force {stage}` makes it anew") from None
    return content


def accepted_path(card: Card) -> Path:
    """Where the accepted version of the data is described."""
    return card_path(card.name).with_name("accepted.json")


def read_accepted(card: Card) -> dict[str, Any]:
    """The `facts.summary` of the last accepted version of the data; empty before the first."""
    path = accepted_path(card)
    try:
        content = json.loads(read_text(path))
        if content:
            Accepted.model_validate(content)
    except FileNotFoundError:
        return {}
    except ValueError as error:  # of pydantic, too
        what = str(error).replace("\n", " ")
        raise UserError(f"{path}: not an accepted version ({what}); write it again with `dpgan data accept`") from None
    return dict(content)


def splits(params: Params, card: Card) -> tuple[Split, Split]:
    """The prepared splits; UserError if judge, train or evaluate would refuse them under these settings."""
    from dpgan.data import prepare

    train, val = (prepare.open_prepared(PREPARED, split) for split in ("train", "val"))
    check_fits(params, train_settings(params, card.preset), card, prepare.offered(train, val, card))
    return train, val

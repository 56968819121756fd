"""Registers a candidate and, where the gate lets it, makes it the champion; takes it back; obeys a human."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from dpgan.config import GateSettings
from dpgan.errors import UserError
from dpgan.labels import Card
from dpgan.registry.gate import Evaluation, Verdict, decide
from dpgan.registry.model_card import model_card
from dpgan.registry.packaging import Package, load_files, register
from dpgan.registry.records import (
    APPROVAL,
    AWAITS,
    PROMOTED,
    REASONS,
    REFUSED,
    ROLLED_BACK,
    VERDICT,
    evaluation_of,
    now,
    record,
    verdict_of,
)
from dpgan.registry.tracking import is_active
from dpgan.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, MovedError, Standing, Versions

_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Candidate:
    """What may become champion, and what its model card says."""

    card: Card
    run_id: str
    content: Package
    evaluation: Evaluation
    floor: Evaluation
    ceiling: Mapping[str, float]  # scores of the real photos, by full name
    facts: Mapping[str, str]  # commit and hashes of the data, as on its run


@dataclass(frozen=True)
class Promotion:
    """What came of it. `standing`: the candidate was the champion already, nothing was changed."""

    model: str
    version: int
    outcome: str  # PROMOTED, REFUSED or AWAITS
    reasons: tuple[str, ...]
    champion: int | None
    standing: bool = False


def promote(
    root: Path, candidate: Candidate, gate: GateSettings, rescore: Callable[[Package], Evaluation]
) -> Promotion:
    """Registers the candidate as a version of `dpgan-<dataset>` and decides whether it becomes champion.

    A champion that has no scores under the candidate's protocol is scored again by `rescore`. Whatever comes of it,
    the version carries verdict, reasons, scores and a model card; with `gate.approval` it does not become champion
    but waits as challenger. Running it again after a crash at any point ends in the same state. Raises UserError
    where the tracking server does not answer, where the champion's scores cannot be had under the candidate's
    protocol, and MovedError if someone on another machine moved the champion meanwhile.
    """
    versions = Versions.of(root, candidate.card.name)
    if not is_active(MlflowClient(versions.uri), candidate.run_id):
        raise UserError(
            f"run {candidate.run_id} is not in the tracking store {versions.uri}: set MLFLOW_TRACKING_URI to the store "
            "that it was logged to, or train again: `dvc repro -f train`"
        )
    with versions.one_at_a_time():
        number = register(versions.uri, versions.model, candidate.run_id, candidate.content)
        record(versions, number, candidate.evaluation)
        before = versions.standing()
        champion = before.champion
        if champion == number:
            word, verdict = verdict_of(versions.get(number)) or (PROMOTED, Verdict(True, ("crowned without the gate",)))
            return Promotion(versions.model, number, word, verdict.reasons, champion, standing=True)
        verdict = _verdict(versions, number, candidate, champion, gate, rescore)
        outcome = (AWAITS if gate.approval else PROMOTED) if verdict.passed else REFUSED
        text = model_card(versions.model, number, candidate.card, candidate.evaluation, candidate.floor,
                          candidate.ceiling, candidate.facts, verdict)  # fmt: skip
        versions.client.update_model_version(versions.model, str(number), text)
        versions.tag(number, {REASONS: json.dumps(verdict.reasons)})
        aliases = _crowned(number, before) if outcome == PROMOTED else {CHALLENGER: number}
        try:
            versions.move("promote", before, aliases, {number: {VERDICT: outcome}})
        except MovedError:  # the verdict was about another champion
            versions.client.update_model_version(versions.model, str(number), "")
            versions.tag(number, {REASONS: None})
            raise
        return Promotion(versions.model, number, outcome, verdict.reasons, versions.aliases().get(CHAMPION))


def promote_by_hand(root: Path, dataset: str, name: str, reason: str) -> int:
    """Makes a version (its number or an alias) champion, whatever the gate said; returns its number.

    Who did it, why and when is kept on the version. UserError where there is no such version, or no reason.
    """
    if not reason.strip() or len(reason) > _LONGEST_REASON:
        raise UserError(f"--reason: say in 1 to {_LONGEST_REASON} characters why; it is kept on the version")
    versions = Versions.of(root, dataset)
    number = versions.find(name)
    with versions.one_at_a_time():
        before = versions.standing()
        if before.champion != number:
            tags: dict[str, str | None] = dict(zip(APPROVAL, (reason, getpass.getuser(), now()), strict=True))
            versions.move("by hand", before, _crowned(number, before), {number: {**tags, ROLLED_BACK: None}})
    return number


def rollback(root: Path, dataset: str) -> int:
    """Makes the previous champion the champion again, and the other way round; returns its version.

    The version that it takes the place of is marked: the gate does not let it come back by itself. Raises UserError
    where there is no previous champion.
    """
    versions = Versions.of(root, dataset)
    with versions.one_at_a_time() as resumed:
        before = versions.standing()
        previous, champion = before.aliases.get(PREVIOUS), before.champion
        if resumed == "rollback" and champion is not None:  # a second one would undo it
            return champion
        if previous is None or champion is None:
            raise UserError(f"{versions.model} at {versions.uri}: no previous champion to go back to")
        marks: dict[int, dict[str, str | None]] = {champion: {ROLLED_BACK: now()}, previous: {ROLLED_BACK: None}}
        versions.move("rollback", before, _crowned(previous, before), marks)
    return previous


def champion_version(root: Path, dataset: str) -> int | None:
    """The version that is champion of a dataset now, or None. UserError where the server does not answer."""
    return Versions.of(root, dataset).aliases().get(CHAMPION)


def _crowned(number: int, before: Standing) -> dict[str, int | None]:
    """The aliases with a new champion. It comes last: the one that it replaces can be reached at every moment."""
    aliases: dict[str, int | None] = {CHALLENGER: None} if before.aliases.get(CHALLENGER) == number else {}
    if before.champion is not None:
        aliases[PREVIOUS] = before.champion
    return {**aliases, CHAMPION: number}


def _verdict(
    versions: Versions,
    number: int,
    candidate: Candidate,
    champion: int | None,
    gate: GateSettings,
    rescore: Callable[[Package], Evaluation],
) -> Verdict:
    """The gate's, with the champion scored under the candidate's protocol."""
    rolled_back = versions.get(number).tags.get(ROLLED_BACK)
    if rolled_back is not None:
        again = f"`dpgan registry promote {number} --reason TEXT` makes it champion again"
        return Verdict(False, (f"it was champion and was rolled back {rolled_back}; {again}",))
    rival = None
    if champion is not None:
        rival = evaluation_of(versions, champion, candidate.evaluation.key)
        if rival is None:
            rival = rescore(load_files(versions.uri, versions.model, champion))
            record(versions, champion, rival)
    return decide(candidate.evaluation, candidate.floor, rival, gate.class_tolerance)

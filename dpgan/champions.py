"""`dpgan registry`: the versions of the model of params.yaml's dataset, and who is champion."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Column, Table

from dpgan.config import load_params
from dpgan.errors import UserError
from dpgan.identities import is_of_measure
from dpgan.labels import load_card
from dpgan.stages.promote import score

if TYPE_CHECKING:
    from dpgan.registry.gate import Evaluation
    from dpgan.registry.records import Recorded
    from dpgan.registry.versions import Versions


def list_versions() -> None:
    """Show the versions: aliases, scores, what was decided, when."""
    from dpgan.registry.records import decision, recorded
    from dpgan.registry.versions import CHAMPION

    versions, console = _versions(), _console()
    aliases, found = versions.aliases(), versions.all()
    if not found:
        console.print(f"{versions.model} at {versions.uri}: no version yet; `dvc repro` makes one")
        return
    scored = {int(version.version): recorded(version) for version in found}
    # Scores compare only under one protocol: the champion's where a version has it, else its own newest.
    standard = next(iter(scored.get(aliases.get(CHAMPION, 0), {})), None)
    shown = {n: (standard if standard in of else next(iter(of), None)) for n, of in scored.items()}
    names = list(dict.fromkeys(name for n, key in shown.items() if key for name in scored[n][key].main))
    table = _table("version", "aliases", *names, "protocol", "made (UTC)", "decision")
    for version in found:
        number = int(version.version)
        key = shown[number]
        main = scored[number][key].main if key else {}
        made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        table.add_row(
            str(number), ", ".join(name for name, of in aliases.items() if of == number),
            *(f"{main[name]:.1f}" if name in main else "" for name in names), (key or "")[:8],
            f"{made:%Y-%m-%d %H:%M}", decision(version),
        )  # fmt: skip
    console.print(f"{versions.model} at {versions.uri}; scores compare only under one protocol", table, sep="\n")


def promote(name: str, reason: str) -> None:
    """Make a version champion, over the gate or after it; the reason is kept on it."""
    from dpgan.registry.promote import promote_by_hand

    versions = _versions()
    number = promote_by_hand(Path.cwd(), _dataset(), name, reason)
    print(f"registry  {versions.model} version {number} is champion")


def rollback() -> None:
    """Make the previous champion the champion again."""
    from dpgan.registry.promote import rollback

    versions = _versions()
    print(f"registry  {versions.model} version {rollback(Path.cwd(), _dataset())} is champion again")


def compare(ours: str, theirs: str, score_missing: bool) -> None:
    """Compare two versions on the same label maps: better, worse, or cannot tell, score by score."""
    from dpgan.evaluation.intervals import CERTAIN, compare_scores

    versions = _versions()
    first, second = versions.find(ours), versions.find(theirs)
    mine, other = _under_one_protocol(versions, first, second, score_missing)
    a, b = f"version {first}", f"version {second}"
    table = _table("score", a, b, "difference", f"{CERTAIN:.0%} interval", f"{a} is")
    for name, c in compare_scores(mine.scores, other.scores).items():
        values = f"{mine.scores[name].value:.2f}", f"{other.scores[name].value:.2f}", f"{c.difference:+.2f}"
        style = {"better": "green", "worse": "red"}.get(c.verdict)
        table.add_row(name, *values, f"{c.low:+.2f} to {c.high:+.2f}", c.verdict, style=style)
    _console().print(f"{versions.model}: {a} less {b}, on the same {_maps(mine)} label maps", table, sep="\n")


def _under_one_protocol(versions: Versions, a: int, b: int, score_missing: bool) -> tuple[Evaluation, Evaluation]:
    """Their evaluations under the newest protocol that both have; under the present one if that is asked for.

    What another version of the measure scored is not read.
    """
    from dpgan.evaluation import MEASURE
    from dpgan.registry.packaging import load_files
    from dpgan.registry.records import evaluation_of, record, recorded

    of = {number: recorded(versions.get(number)) for number in (a, b)}
    key = next((k for k, brief in of[a].items() if k in of[b] and is_of_measure(brief.protocol, MEASURE)), None)
    if key is None and not score_missing:
        told = "; ".join(f"version {n}: {', '.join(map(_told, found.values())) or 'none'}" for n, found in of.items())
        raise UserError(
            f"{versions.model}: versions {a} and {b} have no scores under one protocol ({told}); --score scores them "
            "under the judge, data and settings of this folder (build/, params.yaml)"
        )
    found: dict[int, Evaluation] = {}
    # The one whose scores are older first: the other one may have been scored under the present protocol.
    for number in sorted(of, key=lambda n: max((brief.at for brief in of[n].values()), default="")):
        kept = evaluation_of(versions, number, key) if key else None
        if kept is None:
            kept = score(load_files(versions.uri, versions.model, number), f"version {number}", "registry")
            record(versions, number, kept)
        found[number], key = kept, kept.key
    return found[a], found[b]


def _told(brief: Recorded) -> str:
    from dpgan.evaluation import MEASURE

    p = brief.protocol
    by = "" if is_of_measure(p, MEASURE) else " by another version of dpgan"
    return f"{p['features']} and judge {p['judge']} {p['judge_sha256'][:8]} on data {p['data_hash'][:8]}{by}"


def _maps(evaluation: Evaluation) -> int:
    return next(iter(evaluation.scores.values())).n


def _dataset() -> str:
    return load_card(load_params().dataset).name


def _versions() -> Versions:
    from dpgan.registry.versions import Versions

    return Versions.of(Path.cwd(), _dataset())


def _table(*titles: str) -> Table:
    """Nothing in it is cut off where the terminal is narrow."""
    return Table(*(Column(title, overflow="fold") for title in titles), box=box.SIMPLE_HEAD)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)

"""The fault table: what a broken promise looks like in it, and that faults are numbered and worded."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.__main__ import inject, table
from chaos.faults import FAULTS, Fault, NotHereError, Outcome, expect
from chaos.lab import Lab
from conftest import ROOT


def holds(lab: Lab) -> Outcome:
    return Outcome("resumed | went well", 12)


def loses_nothing(lab: Lab) -> Outcome:
    return Outcome("refused")


def breaks(lab: Lab) -> Outcome:
    expect(False, "two champions")
    return Outcome("")


def impossible(lab: Lab) -> Outcome:
    raise NotHereError("no GPU")


def mistaken(lab: Lab) -> Outcome:
    raise KeyError("a mistake in the injection")


def test_an_outcome_becomes_a_row(tmp_path: Path) -> None:
    rows = [
        inject(Fault(n, "f", "p", one), Lab(tmp_path))
        for n, one in enumerate((holds, breaks, impossible, loses_nothing))
    ]
    assert [row.verdict for row in rows] == ["as promised", "broken", "not here", "as promised"]
    lines = table(rows).splitlines()
    assert lines[2:] == [
        "| 0 | f | p | resumed / went well | 12 | as promised |",
        "| 1 | f | p | two champions |  | broken |",
        "| 2 | f | p | no GPU |  | not here |",
        "| 3 | f | p | refused |  | as promised |",
    ]


def test_a_mistaken_injection_counts_as_broken(tmp_path: Path) -> None:
    row = inject(Fault(1, "f", "p", mistaken), Lab(tmp_path))
    assert row.verdict == "broken"
    assert "a mistake in the injection" in row.happened


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: str(fault.number))
def test_faults_say_what_is_promised(fault: Fault) -> None:
    assert fault.name
    assert fault.promise
    assert str(fault.number) in {line.split("|")[1].strip() for line in documented()}


def documented() -> list[str]:
    text = (ROOT / "docs/reliability.md").read_text()
    return [line for line in text.splitlines() if line.startswith("| ")]

"""Progress lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpgan.progress import Progress


def test_lines_tell_what_is_done_the_rate_and_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress("train")
    now = 110.0
    progress(40, 100, "goes on")  # what an earlier run did is no rate of this one
    now = 111.0
    progress(42, 100)  # too soon for a line of its own
    now = 125.0
    progress(70, 100, 1.5)
    now = 140.0
    progress(100, 100)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["train", "40/100", "images", "goes", "on"]
    assert second.split() == ["train", "70/100", "images", "2.0", "images/s", "0:15", "left", "loss", "1.500"]
    assert last.split() == ["train", "100/100", "images", "2.0", "images/s", "0:40", "in", "all"]


def test_progress_is_recorded_for_the_program_that_runs_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPGAN_RECORDS", str(tmp_path / "records"))
    progress = Progress("evaluate", subject="the candidate 'best'")
    progress(0, 12)
    progress(12, 12, 1.5)
    found = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [record["text"] for record in found] == capsys.readouterr().out.splitlines()
    assert found[0]["text"].endswith("the candidate 'best'")
    assert [(r["kind"], r["stage"], r["done"], r["total"]) for r in found] == [
        ("progress", "evaluate", 0, 12), ("progress", "evaluate", 12, 12),
    ]  # fmt: skip

"""Progress lines."""

from __future__ import annotations

from typing import get_args

import pytest

from dpgan.progress import Progress, Stage
from flows.artifacts import PROGRESS


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


@pytest.mark.parametrize("stage", get_args(Stage))
def test_prefect_reads_every_stages_lines(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Mypy holds that a line begins with one of these."""
    progress = Progress(stage, subject="the candidate 'best'")
    progress(0, 12)
    progress(12, 12, 1.5)
    for line, done in zip(capsys.readouterr().out.splitlines(), ("0", "12"), strict=True):
        found = PROGRESS.match(line)
        assert found, line
        assert found.group(1, 2, 3) == (stage, done, "12")
        assert line.endswith("the candidate 'best'")

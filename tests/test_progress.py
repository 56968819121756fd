"""Progress lines."""

from __future__ import annotations

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

"""Verdicts on equal models, with fewer trials than `python -m benchmarks.trials` (`docs/statistics.md`)."""

from __future__ import annotations

from benchmarks.trials import MEASURES, PROMOTED, shares


def test_equal_models_are_rarely_told_apart() -> None:
    found = shares(64, 400)
    assert {"fid_features", "kid_features", PROMOTED, *MEASURES} == set(found)
    assert {name: share for name, share in found.items() if share > 0.06} == {}
    assert sum(found.values()) > 0.2, "a verdict that is never given would pass, too"


def test_better_models_are_found() -> None:
    found = shares(500, 10, more_skill=0.1)
    assert [found[name] for name in ("fid_features", "kid_features", "miou_judge", PROMOTED)] == [1, 1, 1, 1]

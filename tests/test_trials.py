"""Verdicts on equal models, with fewer trials than `python -m benchmarks.trials` (`docs/statistics.md`)."""

from __future__ import annotations

import pytest

from benchmarks.trials import MEASURES, PROMOTED, shares


@pytest.mark.parametrize(("n", "trials"), [(64, 250), (500, 40)])
def test_equal_models_are_rarely_told_apart(n: int, trials: int) -> None:
    found = shares(n, trials)
    assert {"fid_features", "kid_features", PROMOTED, *MEASURES} == set(found)
    # 5% of 40 trials are 2; more than 5 come by chance in one case of 70.
    allowed = 0.06 if trials > 100 else 0.125
    assert {name: share for name, share in found.items() if share > allowed} == {}
    assert sum(found.values()) > 0, "a verdict that is never given would pass, too"


def test_better_models_are_found() -> None:
    found = shares(500, 10, more_skill=0.1)
    assert [found[name] for name in ("fid_features", "kid_features", "miou_judge", PROMOTED)] == [1, 1, 1, 1]

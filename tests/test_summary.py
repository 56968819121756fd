"""The scores as the terminal and the run's page show them."""

from __future__ import annotations

import pytest

from dpgan.stages.summary import markdown, print_scores

MODEL = {"fid_lite0": 100.0, "miou_trained": 40.0, "diversity_lite0": 7.0}
REAL = {"fid_lite0": 20.0, "miou_trained": 60.0}
SETS = {"last": MODEL, "best": MODEL, "floor": REAL, "ceiling": REAL}


def test_scores_that_only_models_have_stay_blank_for_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(SETS)
    head, fid, miou, diversity = capsys.readouterr().out.splitlines()
    assert head.split() == ["floor", "last", "best", "ceiling"]
    assert fid.split() == ["fid_lite0", "20.0", "100.0", "100.0", "20.0"]
    assert miou.split() == ["miou_trained", "60.0", "40.0", "40.0", "60.0"]
    assert diversity.split() == ["diversity_lite0", "7.0", "7.0"]
    assert diversity.index("7.0") + 3 == head.index("last") + 4, "below its column"
    assert markdown(SETS).splitlines()[2:5:2] == ["| last | 100.0 | 40.0 | 7.0 |", "| floor | 20.0 | 60.0 |  |"]

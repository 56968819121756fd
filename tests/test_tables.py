"""dpgan.evaluation.tables: the paper's numbers, and our runs in their places."""

from __future__ import annotations

import pytest

from dpgan.config import Params, train_settings
from dpgan.evaluation.tables import OASIS, OURS, SPADE, TABLES, Run, missing, render, score_named

WHOLE = {
    **{name: 1.0 for table in TABLES for _, name in table.columns if name.startswith("cost_")},
    **{f"fid_lite0_objects_{size}": 1.0 for size in ("all", "large", "medium", "small")},
    **dict.fromkeys(("fid_lite0_x0.5", "fid_lite0_x2", "fid_lite0_deviation", "obj_miou_trained"), 1.0),
}


def run(name: str, settings: dict[str, object], fid: float, **scores: float) -> Run:
    return Run(name, {**OURS, **settings}, {"fid_lite0": fid, "miou_trained": 40.0, **scores}, seconds=90)


def lines_of(page: str, key: str) -> list[str]:
    return page.split(f"**Table {key}.")[1].split("**Table")[0].splitlines()


def test_a_run_fills_every_place_where_it_belongs_and_the_rest_stays_blank() -> None:
    page = render([run("a", {}, 104.5, fid_lite0_low=101.0, fid_lite0_high=108.25)], "toyscapes")
    for key, row in {"1": "DP-GAN", "4a": "DP / DP", "4b": "encoder", "4c": "decoder", "S3": "DP-GAN"}.items():
        (line,) = (line for line in lines_of(page, key) if line.startswith(f"| {row} |"))
        assert "104.5 [101.0, 108.2]" in line
        assert line.endswith("| 1.5 |")
    (oasis,) = (line for line in lines_of(page, "1") if line.startswith("| OASIS |"))
    assert oasis == "| OASIS | 47.7 | 69.3 |  |  |  |"
    assert "fid_lite0, ours" in page


def test_the_last_of_several_runs_counts() -> None:
    page = render([run("a", OASIS, 200.0), run("b", OASIS, 150.0)], "toyscapes")
    assert "150.0" in page
    assert "200.0" not in page


def test_scores_by_their_form() -> None:
    scores = {
        "fid_lite0": 1.0,
        "fid_lite0_low": 0.0,
        "fid_lite0_x0.5": 2.0,
        "fid_inception": 3.0,
        "obj_miou_trained": 4,
    }
    assert score_named("fid_(inception|lite0)", scores) == "fid_inception"
    assert score_named("fid_(inception|lite0)_x0.5", scores) == "fid_lite0_x0.5"
    assert score_named("miou_(.*)", scores) is None


def test_what_is_missing_is_asked_for_once() -> None:
    everything = [one.train for one in missing([])]
    assert {} in everything, "the method itself"
    assert everything.count(OASIS) == 1, "table 1, 3, 4a, S1, S2 and S5 share it"
    assert SPADE in everything
    left = [one.train for one in missing([run("a", {}, 1.0, **WHOLE), run("b", OASIS, 1.0, **WHOLE)])]
    assert len(left) == len(everything) - 2
    assert OASIS not in left


@pytest.mark.parametrize("lacking", ["fid_lite0_objects_small", "fid_lite0_deviation", "fid_lite0_x2"])
def test_a_run_that_is_not_evaluated_as_a_table_needs_is_asked_for(lacking: str) -> None:
    whole = dict(WHOLE)
    del whole[lacking]
    assert OASIS in [one.train for one in missing([run("b", OASIS, 1.0, **whole)])]


def test_an_experiment_is_evaluated_as_all_of_its_tables_need() -> None:
    evaluate = {str(one.train): one.evaluate for one in missing([])}
    more = {"objects": True, "resolutions": "[0.5,2]"}
    assert evaluate["{}"] == evaluate[str(OASIS)] == {"noise_seeds": 5, **more}
    assert evaluate[str(SPADE)] == more
    assert [needed for needed in evaluate.values() if needed] == [more, *[{"noise_seeds": 5, **more}] * 2]


def test_costs_fill_their_table() -> None:
    costs = {"cost_m_parameters": 0.914, "cost_ms": 12.0, "cost_of_dp": 1.284}
    page = render([run("a", OASIS, 1.0, **costs)], "toyscapes")
    assert "| OASIS | 71.1 | 60.5 | 1.17 | 0.91 | 12.00 | 1.28 | 1.5 |" in lines_of(page, "S5")


@pytest.mark.parametrize("settings", [one.train for one in missing([])], ids=[one.name for one in missing([])])
def test_every_row_can_be_trained(settings: dict[str, object]) -> None:
    """The row's own settings, as an experiment would set them, give the training that the row means."""
    given = {key: value for key, value in settings.items() if key != "labelmix"}
    if settings.get("labelmix") is False:
        given["losses"] = {"labelmix": 0.0}
    trained = train_settings(
        Params(dataset="toyscapes", raw="raw", train={"preset": "toyscapes", **given}), "toyscapes"
    )
    found = {key: getattr(trained, key) for key in OURS if key != "labelmix"}
    assert {**found, "labelmix": trained.losses.labelmix > 0} == {**OURS, **settings}


def test_the_papers_own_method_has_one_fid_wherever_it_stands() -> None:
    columns = {t.key: [title for title, _ in t.columns] for t in TABLES}
    fids = {
        t.key: row.paper[columns[t.key].index("FID")]
        for t in TABLES
        for row in t.rows
        if row.trained == OURS and "FID" in columns[t.key] and t.key != "3"  # table 3 is over other noises
    }
    assert set(fids) == {"1", "4a", "4b", "4c", "S3"}
    assert set(fids.values()) == {"44.1"}

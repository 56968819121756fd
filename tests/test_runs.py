"""dpgan.registry.runs: what the paper's tables see of the runs in a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dpgan.evaluation.tables import OURS, SPADE
from dpgan.registry.runs import scored_runs
from dpgan.registry.spool import Tracker
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run

SETTINGS = {
    "preset": "toyscapes", "generator": "dp", "discriminator": "dp", "patch_at": "encoder", "feature_at": "decoder",
    "concat_s0": True, "losses": {"labelmix": 0.25},
}  # fmt: skip
RECORD = {"value": 104.5, "low": 101.0, "high": 108.0, "n": 400, "seeds": 5, "deviation": 0.5}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def train(root: Path, scores: bool, **changes: object) -> str:
    run = open_run(root, "toyscapes", "run", {"train": {**SETTINGS, **changes}}, {})
    if scores:
        tracker = Tracker(tracking_uri(root), run, root / "spool")
        kind = changes.get("generator", "dp")
        tracker.metrics({"eval/best/fid_lite0": 104.5, "eval/last/fid_lite0": 1.0, f"cost/{kind}/ms": 12.0,
                         "cost/oasis/ms": 99.0}, 100)  # fmt: skip
        (root / "scores.json").write_text(json.dumps({"intervals": {"best": {"fid_lite0": RECORD}}}))
        tracker.artifact(root / "scores.json", "evaluation")
        assert tracker.replay()
    MlflowClient(tracking_uri(root)).set_terminated(run)
    return run


def test_settings_scores_intervals_and_costs(root: Path) -> None:
    assert scored_runs(root, "toyscapes") == []
    train(root, scores=False)
    train(root, scores=True)
    (run,) = scored_runs(root, "toyscapes")
    assert run.trained == OURS
    assert run.scores == {"fid_lite0": 104.5, "fid_lite0_low": 101.0, "fid_lite0_high": 108.0,
                          "fid_lite0_deviation": 0.5, "cost_ms": 12.0}  # fmt: skip
    assert run.seconds is not None


def test_another_row_and_another_preset(root: Path) -> None:
    spade = {key: value for key, value in SPADE.items() if key != "labelmix"}
    train(root, scores=True, **spade, losses={"labelmix": 0.0}, preset="camvid")
    (run,) = scored_runs(root, "toyscapes", "camvid")
    assert run.trained == {**OURS, **SPADE}
    assert scored_runs(root, "toyscapes", "toyscapes") == []

"""Runs in a real store: opened, continued, tagged."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.registry.spool import Tracker
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    quiet_environment()


def test_a_run_is_made_once_and_continued(tmp_path: Path) -> None:
    run_id = open_run(tmp_path, "x", "first", {"train": {"batch": 4, "losses": {"l1": 0.5}}}, {"git": "a"})
    client = MlflowClient(tracking_uri(tmp_path))
    Tracker.of(tmp_path, run_id).finish("FAILED")
    assert client.get_run(run_id).info.status == "FAILED"

    assert open_run(tmp_path, "x", "again", {"train": {"batch": 5}}, {"git": "b"}, run_id) == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "first"
    assert run.data.params == {"train.batch": "4", "train.losses.l1": "0.5"}
    assert run.data.tags["git"] == "b"
    assert client.get_experiment(run.info.experiment_id).name == "dpgan-x"

    other = open_run(tmp_path, "x", "third", {}, {}, "0" * 32)  # the store does not know this id
    assert other not in {run_id, "0" * 32}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlruns", "runs"]


def test_a_server_that_is_away_at_the_start_is_the_users_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        open_run(tmp_path, "x", "run", {}, {})

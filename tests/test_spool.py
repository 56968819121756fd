"""What a run logs: never waited for, kept on disk while the store is away, sent once and in order by whoever comes."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow_server import Server, hanging_server

from dpgan.environment import quiet_environment
from dpgan.registry import spool as module
from dpgan.registry import store
from dpgan.registry.spool import Tracker, keep, replay_all, spool_folder
from dpgan.registry.store import server_is_up, tracking_uri
from dpgan.registry.tracking import open_run, open_store

PICTURE = np.full((4, 6, 3), 9, np.uint8)
EXPERIMENT = "/api/2.0/mlflow/experiments/get"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    quiet_environment()


def waiting(root: Path) -> list[Path]:
    return sorted(spool_folder(root).glob("[0-9]*"))


def test_what_is_logged_arrives(tmp_path: Path) -> None:
    run_id = open_run(tmp_path, "x", "run", {f"p{i}": i for i in range(150)}, {})
    tracker = pickle.loads(pickle.dumps(Tracker.of(tmp_path, run_id)))
    tracker.metrics({"loss/G_total": 1.5, "eval/fid_lite0": 90}, step=200)
    tracker.metrics({"loss/G_total": 1.25}, step=400)
    tracker.image("holdout/samples", PICTURE, step=200)
    (tmp_path / "scores.json").write_text("{}")
    tracker.artifact(tmp_path / "scores.json", "evaluation")
    tracker.text("hello", "note.txt")
    tracker.tags({"attempts": "2"})
    assert tracker.replay()

    client = MlflowClient(tracking_uri(tmp_path))
    history = client.get_metric_history(run_id, "loss/G_total")
    assert [(m.step, m.value) for m in history] == [(200, 1.5), (400, 1.25)]
    run = client.get_run(run_id)
    assert len(run.data.params) == 150
    assert run.data.tags["attempts"] == "2"
    assert run.data.tags["mlflow.loggedImages"] == "True"
    images = [file.path for file in client.list_artifacts(run_id, "images")]
    assert all(path.startswith("images/holdout~samples+step+200+timestamp+") for path in images)
    assert sorted(path.partition(".")[2] for path in images) == ["png", "webp"]
    artifacts = tmp_path / "mlruns" / "artifacts" / "dpgan-x" / run_id / "artifacts"
    assert (artifacts / "evaluation" / "scores.json").is_file()
    assert (artifacts / "note.txt").read_text() == "hello"
    assert waiting(tmp_path) == []


@pytest.mark.parametrize("answers", [["/health"], ["/health", EXPERIMENT]], ids=["database away", "writes hang"])
def test_a_server_that_hangs_costs_the_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    monkeypatch.setattr(store, "ANSWER_S", 1)
    with hanging_server(*answers) as (uri, asked):
        assert server_is_up(uri) == (EXPERIMENT in answers)
        asked.clear()
        tracker = Tracker(uri, "0" * 32, spool_folder(tmp_path))
        begin = time.monotonic()
        for step in range(20):
            tracker.metrics({"loss/D": 1.0}, step)
        tracker.image("samples", PICTURE, 20)
        assert time.monotonic() - begin < 1
        assert not tracker.replay(wait_s=2)
        assert time.monotonic() - begin < 4
        assert len(waiting(tmp_path)) == 21
        assert len(asked) <= 4, "it is left alone after a failure"


def test_after_a_failure_the_store_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(uri: str) -> bool:
        asked.append(uri)
        return False

    monkeypatch.setattr(module, "server_is_up", away)
    tracker = Tracker("http://127.0.0.1:9", "0" * 32, spool_folder(tmp_path))
    tracker.metrics({"loss/D": 1.0}, 1)
    deadline = time.monotonic() + 10
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    for step in range(2, 20):
        tracker.metrics({"loss/D": 1.0}, step)
        time.sleep(0.005)
    assert len(asked) == 1
    assert not tracker.replay(), "the end of a run asks once more"
    assert len(asked) == 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.kill()


def _log_from_a_worker(tracker: Tracker) -> None:
    """Rank 0 of a training, in a process of its own: it ends without waiting."""
    for step in range(20, 30):
        tracker.metrics({"loss/D": float(step)}, step)
        time.sleep(0.02)


def test_records_outlive_a_dead_server_and_arrive_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(module, "REST_S", 0)
    server.start()
    run_id = open_run(tmp_path, "x", "run", {}, {})
    tracker = Tracker.of(tmp_path, run_id)
    tracker.metrics({"loss/D": 1.0}, step=1)
    assert tracker.replay()

    server.kill()
    artifact = tmp_path / "a.txt"
    artifact.write_text("as it was")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/page.html").write_text("a page")
    begin = time.monotonic()
    tracker.metrics({"loss/D": 2.0}, step=2)
    tracker.image("samples", PICTURE, step=2)
    tracker.artifact(artifact)
    tracker.artifact(tmp_path / "report", "data")
    artifact.unlink()
    (tmp_path / "report/page.html").unlink()
    assert not tracker.replay()
    assert time.monotonic() - begin < 5
    assert len(waiting(tmp_path)) == 4
    crashed = tmp_path / "crashed"  # the sender dies between sending and deleting
    shutil.copytree(spool_folder(tmp_path), crashed)

    server.start()
    worker = multiprocessing.get_context("spawn").Process(target=_log_from_a_worker, args=(tracker,))
    worker.start()  # both processes send what the spool holds
    for step in range(3, 13):
        tracker.metrics({"loss/D": float(step)}, step)
        time.sleep(0.02)
    worker.join(60)
    assert worker.exitcode == 0
    tracker.finish("FINISHED")
    assert waiting(tmp_path) == []
    for folder in crashed.glob("[0-9]*"):
        folder.rename(spool_folder(tmp_path) / folder.name)
    assert replay_all(tmp_path)

    client = MlflowClient(server.uri)
    steps = [(m.step, m.value) for m in client.get_metric_history(run_id, "loss/D")]
    assert sorted(steps) == [(step, float(step)) for step in (*range(1, 13), *range(20, 30))]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.list_artifacts(run_id, "images")) == 2  # one image: a PNG and its thumbnail
    assert Path(client.download_artifacts(run_id, "a.txt", str(tmp_path))).read_text() == "as it was"
    assert [file.path for file in client.list_artifacts(run_id, "data")] == ["data/page.html"]


def test_the_next_command_sends_what_the_last_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a training and an evaluation while the server is away, then any command that opens the store."""
    run_id, uri = open_run(tmp_path, "x", "run", {}, {}), tracking_uri(tmp_path)
    with monkeypatch.context() as away:
        away.setattr(module, "server_is_up", lambda _: False)
        Tracker.of(tmp_path, run_id).finish("FINISHED")
        evaluating = Tracker.of(tmp_path, run_id)  # in a process of its own
        evaluating.metrics({"eval/best/fid_lite0": 90.0}, 100)
        assert not evaluating.replay()
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert open_store(tmp_path) == uri
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"eval/best/fid_lite0": 90.0}
    assert waiting(tmp_path) == []


def test_a_continued_run_is_not_ended_by_its_last_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = open_run(tmp_path, "x", "run", {}, {})
    with monkeypatch.context() as away:
        away.setattr(module, "server_is_up", lambda _: False)
        Tracker.of(tmp_path, run_id).finish("KILLED")
    assert open_run(tmp_path, "x", "run", {}, {}, run_id) == run_id
    Tracker.of(tmp_path, run_id).replay()
    assert MlflowClient(tracking_uri(tmp_path)).get_run(run_id).info.status == "RUNNING"


def test_a_record_that_cannot_be_sent_holds_up_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_id = open_run(tmp_path, "x", "run", {}, {})
    spool = spool_folder(tmp_path)
    keep(spool, {"kind": "metrics", "run_id": "f" * 32, "values": {"a": 1.0}, "step": 1})
    keep(spool, {"kind": "tags", "run_id": run_id, "values": {"bad\nname": "1"}})
    keep(spool, {"kind": "tags", "run_id": run_id, "values": {"good": "1"}})
    keep(spool, {"kind": "tags", "run_id": run_id, "values": {"cut off": "1"}})
    (waiting(tmp_path)[-1] / "record.json").write_text('{"kind": "ta')
    assert not replay_all(tmp_path)
    assert MlflowClient(tracking_uri(tmp_path)).get_run(run_id).data.tags["good"] == "1"
    assert len(list(spool.glob("refused-*"))) == 2
    assert [path.name for path in waiting(tmp_path)] == [waiting(tmp_path)[0].name], "it belongs to another store"
    assert "does not know: " + "f" * 32 in caplog.text
    assert "refuses it" in caplog.text

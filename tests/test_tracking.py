"""Runs, metrics and images in a real store, and a tracking server that goes away."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.registry.tracking import Tracker, open_run, server_is_up, tracking_uri


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    quiet_environment()


def test_a_run_is_made_once_and_continued(tmp_path: Path) -> None:
    run_id = open_run(tmp_path, "x", "first", {"train": {"batch": 4, "losses": {"l1": 0.5}}}, {"git": "a"})
    client = MlflowClient(tracking_uri(tmp_path))
    Tracker(tracking_uri(tmp_path), run_id, tmp_path / "spool").finish("FAILED")
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
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]


def test_what_is_logged_arrives(tmp_path: Path) -> None:
    run_id = open_run(tmp_path, "x", "run", {f"p{i}": i for i in range(150)}, {})
    tracker = pickle.loads(pickle.dumps(Tracker(tracking_uri(tmp_path), run_id, tmp_path / "spool")))
    tracker.metrics({"loss/G_total": 1.5, "eval/fid_lite0": 90}, step=200)
    tracker.metrics({"loss/G_total": 1.25}, step=400)
    tracker.image("samples", np.zeros((8, 8, 3), np.uint8), step=200)
    (tmp_path / "scores.json").write_text("{}")
    tracker.artifact(tmp_path / "scores.json", "evaluation")
    tracker.text("hello", "note.txt")
    tracker.tags({"attempts": "2"})

    client = MlflowClient(tracking_uri(tmp_path))
    history = client.get_metric_history(run_id, "loss/G_total")
    assert [(m.step, m.value) for m in history] == [(200, 1.5), (400, 1.25)]
    run = client.get_run(run_id)
    assert len(run.data.params) == 150
    assert run.data.tags["attempts"] == "2"
    assert any(file.path.startswith("images/samples+step+200") for file in client.list_artifacts(run_id, "images"))
    artifacts = tmp_path / "mlruns" / "artifacts" / "dpgan-x" / run_id / "artifacts"
    assert (artifacts / "evaluation" / "scores.json").is_file()
    assert (artifacts / "note.txt").read_text() == "hello"
    assert not (tmp_path / "spool").exists()


def test_a_server_that_is_away_at_the_start_is_the_users_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        open_run(tmp_path, "x", "run", {}, {})


class Server:
    """`mlflow server` on a free loopback port, started and killed like a real one."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder)]
        where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        self.command = [sys.executable, "-m", "mlflow", "server", *store, *where]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A session of its own: the server forks workers, and all of them must end.
        silent = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, stdout=silent, stderr=silent, start_new_session=True)
        deadline = time.monotonic() + 90
        while not server_is_up(self.uri):
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start within 90 s"
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.kill()


def test_records_outlive_a_dead_server_and_arrive_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    run_id = open_run(tmp_path, "x", "run", {}, {})
    tracker = Tracker(server.uri, run_id, tmp_path / "spool")
    tracker.metrics({"loss/D": 1.0}, step=1)

    server.kill()
    artifact = tmp_path / "a.txt"
    artifact.write_text("as it was")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/page.html").write_text("a page")
    begin = time.monotonic()
    tracker.metrics({"loss/D": 2.0}, step=2)
    tracker.image("samples", np.full((4, 4, 3), 9, np.uint8), step=2)
    tracker.artifact(artifact)
    tracker.artifact(tmp_path / "report", "data")
    artifact.unlink()
    (tmp_path / "report/page.html").unlink()
    tracker.finish("FINISHED")
    assert time.monotonic() - begin < 5  # the training does not wait
    assert not tracker.replay()
    assert len(list(tracker.spool.iterdir())) == 5

    server.start()
    tracker.metrics({"loss/D": 3.0}, step=3)  # sends what was kept, then itself
    assert tracker.replay()
    assert list(tracker.spool.iterdir()) == []
    client = MlflowClient(server.uri)
    history = client.get_metric_history(run_id, "loss/D")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.list_artifacts(run_id, "images")) == 2  # one image: a PNG and its thumbnail
    assert Path(client.download_artifacts(run_id, "a.txt", str(tmp_path))).read_text() == "as it was"
    assert [file.path for file in client.list_artifacts(run_id, "data")] == ["data/page.html"]

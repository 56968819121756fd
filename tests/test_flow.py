"""What the flow makes of a failure, of a person's decision, and of servers that are away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from conftest import ROOT
from prefect.client.schemas.actions import ArtifactCreate
from prefect.exceptions import FailedRun, FlowPauseTimeout
from pydantic import ValidationError

import flows
from dpgan.errors import TemporaryError, UserError
from flows import artifacts, train_dpgan
from flows.stage import judge, run
from flows.train_dpgan import Approval, _failed
from flows.worker import patient_loop
from flows.workspace import Workspace


def test_what_may_pass_is_raised_and_the_rest_is_a_state() -> None:
    with pytest.raises(TemporaryError, match="away"):
        _failed(TemporaryError("MLflow is away"))
    state = _failed(UserError("data/camvid/raw: no raw pairs of camvid"))
    assert state.is_failed()
    assert state.message == "data/camvid/raw: no raw pairs of camvid"


@pytest.mark.parametrize(
    ("failure", "remote", "busy", "passes"),
    [
        ({"exit_code": 75, "message": "m"}, False, False, True),
        ({"exit_code": 2, "message": "m"}, False, False, False),
        ({"exit_code": 1, "message": "Connection refused, says a bug"}, True, True, False),
        (None, True, False, True),
        (None, False, True, True),
        (None, False, False, False),
    ],
)
def test_the_kind_of_a_failure_decides(failure: Any, remote: bool, busy: bool, passes: bool) -> None:
    error = judge(failure, "Connection refused", remote=remote, busy=busy)
    assert isinstance(error, TemporaryError) == passes
    assert str(error) == ("Connection refused" if failure is None else failure["message"])


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """As much of one as running a command needs."""
    lock = os.open(tmp_path / "lock", os.O_CREAT)
    params = SimpleNamespace(run=SimpleNamespace(grace_s=5))
    yield SimpleNamespace(root=tmp_path, params=params, lock=lock, environment=lambda: dict(os.environ))
    os.close(lock)


STAGE = """
from dpgan.progress import Progress, record
progress = Progress("eval best")
progress.every = 0
progress(1, 2)
record("run", run_id="4ef")
print("https://user:secret@git.example.org/")
progress(2, 2)
"""


def test_a_command_is_logged_shown_and_judged_by_its_records(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    (tmp_path / "some_stage.py").write_text(STAGE)
    log: list[str] = []
    shown: list[Any] = []
    run(workspace, ["some_stage"], log.append, shown.append)
    assert [(record["kind"], record.get("done"), record.get("run_id")) for record in shown] == [
        ("progress", 1, None), ("run", None, "4ef"), ("progress", 2, None),
    ]  # fmt: skip
    assert log[1] == "https://***@git.example.org/"

    (tmp_path / "some_stage.py").write_text("raise SystemExit('no number')")
    with pytest.raises(UserError, match=r"some_stage --x ended with code 1: .*no number") as bug:
        run(workspace, ["some_stage", "--x"], log.append, shown.append)
    assert not isinstance(bug.value, TemporaryError)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.chdir(ROOT)
    with pytest.raises(TemporaryError, match="does not answer"):
        run(workspace, ["dpgan.cli", "registry", "list"], log.append, shown.append)
    assert "secret" not in "".join(log)


class Server:
    """Prefect's client, as far as artifacts need it; away until `back` is set, and slow to say so."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.sent: list[tuple[str, Any]] = []

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def create_artifact(self, artifact: ArtifactCreate) -> Any:
        if not self.back.wait(0.05):
            raise ConnectionError("refused")
        self.sent.append((artifact.key or "", artifact.data))
        return SimpleNamespace(id=artifact.key)

    def update_artifact(self, key: Any, artifact: Any) -> None:
        self.sent.append((key, artifact.data))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(artifacts, "get_client", lambda **_: found)
    monkeypatch.setattr(artifacts, "AGAIN_S", 0.01)
    return found


def test_a_server_that_is_away_delays_nobody_and_gets_the_newest(server: Server) -> None:
    board = artifacts.Board()
    began = time.monotonic()
    for done in range(1000):
        board.show("train-progress", artifacts.progress(done, 1000, ""))
    assert time.monotonic() - began < 1
    assert board.flush(0.2) == ["train-progress"]
    server.back.set()
    assert board.flush(10) == []
    assert server.sent == [("train-progress", 99.9)]
    board.show("train-progress", artifacts.progress(1000, 1000, ""))
    assert board.flush(10) == []
    assert server.sent[1:] == [("train-progress", 100.0)]


def test_an_mlflow_that_fails_keeps_no_other_artifact_back(server: Server) -> None:
    def broken() -> artifacts.Content:
        raise RuntimeError("MLflow answers 500")

    server.back.set()
    board = artifacts.Board()
    board.show("mlflow-run", broken)
    board.show("scores", ("table", "[]", None))
    deadline = time.monotonic() + 10
    while not server.sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.sent == [("scores", "[]")]
    assert board.flush(0) == ["mlflow-run"]


RESULT = {"verdict": "awaits approval", "model": "dpgan-toyscapes", "version": 4, "champion": 3, "reasons": []}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What a run does after its stages, with tasks that only say that they were called."""
    called: list[str] = []

    def says(name: str) -> Callable[..., Any]:
        def task(*words: Any, **_: Any) -> Any:
            called.append(f"{name} {words[1]['verdict']}" if name == "keep" else name)
            return SimpleNamespace(is_completed=lambda: True, result=lambda: None)

        return task

    monkeypatch.setattr(train_dpgan, "STAGES", {})
    monkeypatch.setattr(train_dpgan, "AWAITS", RESULT["verdict"])
    monkeypatch.setattr(train_dpgan, "BOARD", SimpleNamespace(show=lambda *_: None))
    monkeypatch.setattr(artifacts, "promotion", lambda: dict(RESULT))
    monkeypatch.setattr(train_dpgan, "keep_run", says("keep"))
    monkeypatch.setattr(train_dpgan, "promote_approved", says("approve"))
    monkeypatch.setattr(train_dpgan, "_wait_for_prefect", lambda: None)
    return called


def pauses(monkeypatch: pytest.MonkeyPatch, done: list[str], end: Any) -> None:
    def pause(**_: Any) -> Any:
        done.append("pause")
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(train_dpgan, "pause_flow_run", pause)


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as error:
        Approval(promote=True, reason=" ")
    return error.value


@pytest.mark.parametrize(
    ("end", "said"), [(FlowPauseTimeout(), "nobody decided within 24 hours"), (invalid(), "without a reason")]
)
def test_a_run_is_kept_before_it_waits_for_a_decision_that_never_comes(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: Any, said: str
) -> None:
    pauses(monkeypatch, done, end)
    with pytest.raises(UserError, match=f"{said}; version 4 stays challenger; later: dpgan registry promote 4"):
        train_dpgan._run_stages(SimpleNamespace(root=tmp_path))
    assert done == ["keep awaits approval", "pause"]


@pytest.mark.parametrize(("promote", "after"), [(True, ["approve", "keep promoted by hand"]), (False, [])])
def test_a_decision_is_kept_after_the_run(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, promote: bool, after: list[str]
) -> None:
    pauses(monkeypatch, done, Approval(promote=promote, reason="sharp"))
    result = train_dpgan._run_stages(SimpleNamespace(root=tmp_path))
    assert done == ["keep awaits approval", "pause", *after]
    assert result["champion"] == (4 if promote else 3)


def test_an_mlflow_that_is_away_at_the_end_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(train_dpgan, "keep", lambda *_: "4ef")
    monkeypatch.setattr(artifacts, "trained_run", lambda: "run")
    with pytest.raises(TemporaryError, match="does not answer"):
        train_dpgan.keep_run.fn(SimpleNamespace(branch="runs/toyscapes"), RESULT)


def test_what_the_stages_could_not_send_to_mlflow_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(train_dpgan, "keep", lambda *_: "4ef")
    monkeypatch.setattr(train_dpgan, "replay_all", sent.append)
    monkeypatch.setattr(train_dpgan, "tag_run", lambda *words: sent.append(words[1:]))
    monkeypatch.setattr(train_dpgan, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(artifacts, "trained_run", lambda: "run")
    train_dpgan.keep_run.fn(SimpleNamespace(branch="runs/toyscapes"), RESULT)
    assert sent == [Path.cwd(), ("run", {"git.run": "runs/toyscapes 4ef"})]


def test_a_stage_gets_none_of_prefects_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "dpgan:secret")
    given = Workspace.environment(SimpleNamespace(root=tmp_path))  # type: ignore[arg-type]
    assert "dpgan:secret" not in given.values()
    assert given["PYTHONPATH"] == str(tmp_path)


def test_only_the_engine_s_own_traceback_is_dropped() -> None:
    def record(error: Exception | None) -> logging.LogRecord:
        return logging.LogRecord("prefect.engine", logging.ERROR, "", 0, "", (), error and (type(error), error, None))

    assert not flows._is_told(record(FailedRun("said already")))
    assert flows._is_told(record(RuntimeError("a bug")))
    assert flows._is_told(record(None))


def test_a_lost_concurrency_lease_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect 3.8 itself cancels the flow, and with it the training."""
    from prefect.concurrency import _leases

    asked = threading.Event()

    class Restarted:
        def renew_concurrency_lease(self, **_: Any) -> None:
            asked.set()
            raise RuntimeError("410 Gone")

    monkeypatch.setattr(_leases, "get_client", lambda **_: contextlib.nullcontext(Restarted()))
    monkeypatch.setattr(_leases, "_RENEWAL_MAX_ATTEMPTS", 1)
    with _leases.maintain_concurrency_lease(uuid4(), 30, raise_on_lease_renewal_failure=True):
        assert asked.wait(10)
        time.sleep(0.5)  # a cancel reaches the thread here


def test_a_worker_waits_for_its_server_however_long_it_is_away() -> None:
    """Prefect's own gives up, and ends the training with it."""
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if asked < 40:
            raise httpx.ConnectError("refused")

    asyncio.run(patient_loop(ask, 0.001, run_once=True, consecutive=1))
    assert asked == 40

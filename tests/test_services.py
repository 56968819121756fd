"""What `make up` remembers of its processes, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import services
from conftest import ROOT

from dpgan.errors import UserError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in {
        "STATE": tmp_path,
        "RECORD": tmp_path / "services.json",
        "CLIENT": tmp_path / "prefect.toml",
        "LOGIN": tmp_path / "prefect-login",
    }.items():
        monkeypatch.setattr(services, name, path)
    return tmp_path


def test_a_process_is_known_by_more_than_its_number() -> None:
    mine = services.Service.of(os.getpid(), "")
    assert mine.alive
    assert not dataclasses.replace(mine, ticks=mine.ticks + 1).alive, "the number was given to another process"
    assert not dataclasses.replace(mine, boot="before the reboot").alive
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert not services.Service.of(ended.pid, "").alive


def test_down_leaves_a_process_alone_that_has_taken_the_number(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            record = services.Service.of(other.pid, "http://127.0.0.1:1")
            services._record({"mlflow": dataclasses.replace(record, ticks=record.ticks - 1)})
            services.CLIENT.write_text("# mine\n")
            services.down()
            assert other.poll() is None
            assert services.CLIENT.exists(), "not written by `make up`"
            services._record({"mlflow": record})
            services.down()
            assert not record.alive
        finally:
            other.kill()
    assert "mlflow   ended" in capsys.readouterr().out
    assert not services.recorded()


def test_a_copy_leaves_the_services_of_the_original_alone(
    state: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = tmp_path_factory.mktemp("original")
    (state / "link").symlink_to(state)
    for home, known in ((original, False), (state, True), (state / "link", True), (original / "moved away", True)):
        env = os.environ | {"DPGAN_STARTED_BY": str(home / "mlflow")}
        with subprocess.Popen(["sleep", "60"], env=env) as service:
            try:
                services._record({"mlflow": services.Service.of(service.pid, "http://127.0.0.1:1")})
                assert bool(services.recorded()) == known
                services.down()
                assert (service.poll() is None) == (not known)
            finally:
                service.kill()


@pytest.mark.usefixtures("state")
def test_a_port_that_is_taken() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(
            UserError, match=f"port {port} of 127.0.0.1 is taken; choose another: make up MLFLOW_PORT=N"
        ):
            services.up({"mlflow": port, "prefect": None})


@pytest.mark.usefixtures("state")
def test_one_at_a_time() -> None:
    with services._alone(), pytest.raises(UserError, match="another `make up`"), services._alone():
        pass


def test_servers_stay_where_they_were_and_apart() -> None:
    free = services.next_free(20000)
    old = {name: services.Service(1, "", 1, f"http://127.0.0.1:{free}") for name in ("mlflow",)}
    url = services._urls(old, {}, {"mlflow": None, "prefect": None})
    assert url["mlflow"] == f"http://127.0.0.1:{free}"
    url = services._urls({}, {}, {"mlflow": None, "prefect": services.next_free(5000)})
    assert url["mlflow"] != url["prefect"], "the default of one was asked for as the other's"
    with pytest.raises(UserError, match=f"port {free} of 127.0.0.1 is taken; choose another: make up PREFECT_PORT=N"):
        services._urls({}, {}, {"mlflow": free, "prefect": free})
    worker = services.Service(1, "", 1, "")
    with pytest.raises(UserError, match=f"the worker looks for mlflow at http://127.0.0.1:{free}; `make down`"):
        services._urls(old, {"worker": worker}, {"mlflow": services.next_free(free + 1), "prefect": None})


def test_the_next_free_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert services.next_free(port) > port
    assert services.next_free(port, {port}) > port


def test_what_outlived_its_service_is_found_and_ended() -> None:
    script = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    mark = str(ROOT / ".services" / "test")
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"DPGAN_STARTED_BY": mark}, check=True)
    assert len(services.started_by(mark)) == 1
    assert not services.started_by(f"{mark}er")
    assert services.end("test", mark, None, 10)
    assert not services.started_by(mark)
    assert not services.end("test", mark, None, 10)


def test_a_log_outlives_the_next_start_and_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "prefect.log"
    for said in (b"why it died\n", b"again\n"):
        with processes.open_log(log) as file:
            file.write(said)
    assert [line for line in log.read_text().splitlines() if not line.startswith("---")] == ["why it died", "again"]
    monkeypatch.setattr(processes, "LOG_BYTES", 10)
    for _ in range(3):
        processes.open_log(log).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prefect.log", "prefect.log.1"]


def test_the_login_is_made_once_and_is_private(state: Path) -> None:
    made = services.login()
    assert services.login() == made
    assert services.LOGIN.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == ["prefect-login"]

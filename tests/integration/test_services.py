"""Services that die, in a project whose flow only waits. The tests run in their order: three starts, no training."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import requests

from .conftest import Services, make_clone

# A flow with a stage that takes three seconds for its checkpoint when it is told to stop.
FLOW = """
import subprocess, sys
from prefect import flow

STAGE = '''
import pathlib, signal, time
def stop(*_):
    time.sleep(3)
    pathlib.Path("FOLDER/checkpoint").touch()
    raise SystemExit
signal.signal(signal.SIGTERM, stop)
pathlib.Path("FOLDER/begun").touch()
time.sleep(600)
'''

@flow(name="train-dpgan")
def wait():
    process = subprocess.Popen([sys.executable, "-m", "flows.child", "20", sys.executable, "-c", STAGE])
    try:
        process.wait()
    finally:
        process.terminate()
        process.wait()
"""
DEPLOYMENT = """
pull: [{prefect.deployments.steps.git_clone: {repository: "{{ $DPGAN_REPOSITORY }}"}}]
deployments:
  - {name: waits, entrypoint: "waits.py:wait", concurrency_limit: 1, work_pool: {name: dpgan}}
"""


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A project whose services are down; down again at the end."""
    project = Services(make_clone(tmp_path_factory.mktemp("waiting")).root)
    (project.root / "waits.py").write_text(FLOW.replace("FOLDER", str(project.root / "build")))
    (project.root / "waits.yaml").write_text(DEPLOYMENT)
    (project.root / "build").mkdir()
    project.commit("a flow that waits")
    try:
        yield project
    finally:
        project.make("down")


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def begin(project: Services) -> str:
    """A run whose stage has begun."""
    begun = project.root / "build/begun"
    begun.unlink(missing_ok=True)
    run = project.prefect.start("waits")
    until(begun.exists)
    return run


def tree(project: Services) -> list[psutil.Process]:
    """The services and what they have started, runs too."""
    roots = [psutil.Process(service["pid"]) for service in project.services().values()]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def test_what_cannot_be_is_refused_before_anything_starts(waiting: Services) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        output = waiting.make("up", "--prefect-port", str(port), code=1)
    assert output == f"error: port {port} of 127.0.0.1 is taken; choose another: make up PREFECT_PORT=N\n"
    assert "a number from 1 to 65535" in waiting.make("up", "--mlflow-port", "70000", code=1)
    client = waiting.root / "prefect.toml"
    client.write_text("# mine\n")
    assert "is not ours" in waiting.make("up", code=1)
    assert client.read_text() == "# mine\n"
    client.unlink()
    assert not (waiting.root / ".services/services.json").exists()


def test_the_services_are_the_projects_own_whatever_the_shell_names(waiting: Services) -> None:
    waiting.env |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    output = waiting.make("up")
    del waiting.env["MLFLOW_TRACKING_URI"], waiting.env["PREFECT_API_URL"]
    assert "PREFECT_API_URL=http://127.0.0.1:9/api is set in this shell" in output
    assert (waiting.root / "mlruns/mlflow.db").exists()
    waiting.env["DPGAN_REPOSITORY"] = f"file://{waiting.root}"
    waiting.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "waits.yaml")


EVIL = {"Origin": "https://evil.example"}
DEPLOYMENTS = "api/deployments/filter"


def test_no_web_page_reaches_the_services(waiting: Services) -> None:
    """What a browser sends for a page of another site; the last ones after a rebinding of its name to loopback."""
    prefect, mlflow = (waiting.services()[name]["url"] for name in ("prefect", "mlflow"))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = requests.options(f"{prefect}/{DEPLOYMENTS}", headers=EVIL | asks, timeout=30)
    assert "access-control-allow-origin" not in preflight.headers
    for headers in (EVIL, {"Content-Type": "text/plain"} | EVIL, {"Host": "evil.example"}):
        answer = requests.post(f"{prefect}/{DEPLOYMENTS}", data="{}", headers=headers, timeout=30)
        assert answer.status_code == 401, headers
        assert "access-control-allow-origin" not in answer.headers
    for headers in (EVIL, {"Host": "evil.example"}):
        answer = requests.post(
            f"{mlflow}/api/2.0/mlflow/experiments/create", json={"name": "x"}, headers=headers, timeout=30
        )
        assert answer.status_code in (400, 403), headers
    own = requests.options(f"{prefect}/{DEPLOYMENTS}", headers=asks | {"Origin": prefect}, timeout=30)
    assert own.headers["access-control-allow-origin"] == prefect, "the UI's own calls"
    assert waiting.prefect.post("deployments/filter"), "with the login"


def test_the_login_is_read_by_its_owner_alone(waiting: Services) -> None:
    login = waiting.root / ".services/prefect-login"
    for path in (login, waiting.root / "prefect.toml"):
        assert path.stat().st_mode & 0o777 == 0o600
    secret = login.read_text().strip().partition(":")[2]
    assert len(secret) == 48
    assert secret not in waiting.make("up")
    assert not [process.pid for process in psutil.process_iter() if secret in " ".join(process.cmdline())]
    logs = "".join(path.read_text() for path in (waiting.root / ".services").glob("*.log"))
    assert secret not in logs


def test_a_run_outlives_its_worker_and_what_is_started_again_is_where_it_was(waiting: Services) -> None:
    run = begin(waiting)
    before = waiting.services()
    (flow,) = psutil.Process(before["worker"]["pid"]).children()
    stage = flow.children(recursive=True)
    (mlflow_worker,) = psutil.Process(before["mlflow"]["pid"]).children()
    for name in ("worker", "mlflow"):
        psutil.Process(before[name]["pid"]).kill()
    waiting.make("up")
    after = waiting.services()
    assert {name for name in after if after[name] != before[name]} == {"worker", "mlflow"}
    assert after["mlflow"]["url"] == before["mlflow"]["url"]
    assert not mlflow_worker.is_running()
    assert waiting.prefect.state(run)[0] == "Running"
    assert flow.is_running()

    processes = [flow, *stage, *tree(waiting)]
    assert "was cut off" in waiting.make("down")
    assert (waiting.root / "build/checkpoint").exists()
    assert not [process for process in processes if process.is_running()]


def test_after_a_power_cut_the_next_run_need_not_wait(waiting: Services) -> None:
    waiting.make("up")
    run = begin(waiting)
    for process in tree(waiting):
        process.kill()
    waiting.make("up")
    assert waiting.prefect.state(run) == ("Crashed", "its process is gone; a new run goes on from its last checkpoint")
    run = begin(waiting)
    psutil.Process(waiting.services()["worker"]["pid"]).kill()  # nobody is left who would hear of a cancel
    waiting.run("prefect", "flow-run", "cancel", run)
    with subprocess.Popen(["sleep", "60"], cwd=waiting.root, env=waiting.env) as bystander:
        waiting.make("down")
        assert bystander.poll() is None
        bystander.kill()
    with sqlite3.connect(waiting.root / ".services/prefect/prefect.db") as database:
        states = database.execute("select state_type from flow_run order by created").fetchall()
    assert states == [("CRASHED",), ("CRASHED",), ("CANCELLED",)]

"""`make up`, runs by way of deployments, and `make down`: real services in a tiny project. Tests run in their order."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from .conftest import Services, make_clone

LONG = {"train.images": 240}  # long enough to be cancelled in the middle


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    clone = make_clone(tmp_path_factory.mktemp("services"))
    project = Services(clone.root)
    for name in ("dataset.yaml", "dvc.yaml", "accepted.json"):  # a second dataset that needs no download
        text = (project.root / "data/toyscapes" / name).read_text()
        (project.root / "data/streets").mkdir(exist_ok=True)
        (project.root / "data/streets" / name).write_text(text.replace("name: toyscapes", "name: streets"))
    project.commit("another dataset")
    try:
        project.make("up")
        yield project
    finally:
        project.make("down")
        left = [line for line in project.processes("") if "pytest" not in line]
        assert not left, left


def test_all_answer_on_loopback_only_and_the_client_finds_them(services: Services) -> None:
    found = services.services()
    assert set(found) == {"mlflow", "prefect", "worker"}
    for service in found.values():
        tree = [psutil.Process(service["pid"]), *psutil.Process(service["pid"]).children(recursive=True)]
        ports = {c.laddr for process in tree for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {address.ip for address in ports} <= {"127.0.0.1"}
    listed = services.run("prefect", "deployment", "ls")
    for name in ("toyscapes", "camvid", "cityscapes", "ade20k", "ade20k-outdoor", "coco-stuff"):
        assert f"train-dpgan/{name}" in listed
        deployment = services.prefect.get(f"deployments/name/train-dpgan/{name}")
        assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
    automations = services.prefect.post("automations/filter")
    assert len(automations) == 7
    assert [automation["name"] for automation in automations if automation["enabled"]] == ["lost-runs"]
    assert services.run("git", "status", "--porcelain") == ""


def test_what_is_up_stays_and_what_has_died_is_started(services: Services) -> None:
    before = services.services()
    psutil.Process(before["worker"]["pid"]).kill()
    output = services.make("up")
    assert "mlflow   is up already" in output
    after = services.services()
    assert {name for name in after if after[name] != before[name]} == {"worker"}
    assert "PREFECT_PORT=N" not in services.make("up", "--prefect-port", "4200"), "it is up: there is nothing to choose"


@pytest.fixture
def told() -> Iterator[tuple[str, queue.Queue[str]]]:
    """The address of a webhook, and what it is told."""
    heard: queue.Queue[str] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret", heard
        server.shutdown()


def test_without_its_data_the_first_task_says_what_to_download_and_a_webhook_is_told(
    services: Services, told: tuple[str, queue.Queue[str]]
) -> None:
    url, heard = told
    services.env["WEBHOOK_URL"] = url
    for _ in range(2):  # safe to run again
        assert "secret" not in services.run(sys.executable, "infra/automations.py", "notify")
    run = services.prefect.start("cityscapes")
    message = services.prefect.wait(run, "Failed")
    assert message in heard.get(timeout=60)
    assert heard.empty()
    assert str(services.root / "data/cityscapes/raw") in message
    assert "http" in message
    assert services.prefect.tasks(run) == {"workspace": "Failed"}
    assert "Traceback" not in services.prefect.logs(run)


def test_a_mistyped_override_ends_the_run_before_anything_starts(services: Services) -> None:
    run = services.prefect.start("toyscapes", overrides={"train.imges": 3})
    assert "did you mean 'images'" in services.prefect.wait(run, "Failed")
    assert services.prefect.tasks(run) == {"workspace": "Failed"}
    assert "runs/" not in services.run("git", "branch", "--list")


def test_two_datasets_at_once_a_queue_and_a_cancel_that_leaves_a_resumable_run(services: Services) -> None:
    prefect = services.prefect
    first = prefect.start("toyscapes", overrides=LONG)
    services.checkpoint("toyscapes")
    other = prefect.start("camvid", dataset="streets")
    second = prefect.start("toyscapes", overrides=LONG)
    prefect.wait(second, "AwaitingConcurrencySlot")
    prefect.wait(other, "Running")
    assert prefect.state(first)[0] == "Running", "the other dataset's run began while this one trains"

    services.run("prefect", "flow-run", "cancel", first)
    prefect.wait(first, "Cancelled")
    left = services.checkpoint("toyscapes")
    assert (left / "manifest.json").exists()
    assert "KILLED" in [status for _, status in services.mlflow_runs()]

    message = prefect.wait(second, "Completed", 900)
    assert not message
    assert "resumes from the checkpoint" in prefect.logs(second)
    prefect.wait(other, "Completed", 900)
    runs = services.mlflow_runs()
    assert [status for _, status in runs] == ["FINISHED", "FINISHED"], "one a dataset: the second run is the first's"

    shown = prefect.artifacts(second)
    assert {"data-report", "train-progress", "mlflow-run", "scores", "contact-sheet", "verdict"} <= set(shown)
    assert f"runs/{runs[0][0]}" in shown["mlflow-run"]
    assert shown["train-progress"] == 100
    assert "refused" in shown["verdict"], "a tiny network is behind the floor: refused, and the run is complete"
    assert list(prefect.tasks(second).values()) == ["Completed"] * 9
    for dataset in ("toyscapes", "streets"):
        assert "schema" in services.run("git", "show", f"runs/{dataset}:dvc.lock")
    assert list((services.root / "storage/files/md5").iterdir()), "pushed to the DVC remote"
    assert (services.root / "params.yaml").read_text() == services.run("git", "show", "HEAD:params.yaml")


def test_a_run_outlives_a_prefect_server_that_is_away(services: Services) -> None:
    before = services.run("git", "log", "-1", "--format=%H", "--all", "--", "build/scores.json")
    run = services.prefect.start("toyscapes", overrides={"train.images": 84, "seed": 3})
    services.checkpoint("toyscapes")
    server = psutil.Process(services.services()["prefect"]["pid"])
    for process in (server, *server.children(recursive=True)):
        process.kill()
    deadline = time.monotonic() + 300
    while services.run("git", "log", "-1", "--format=%H", "--all", "--", "build/scores.json") == before:
        assert time.monotonic() < deadline, "trained, scored and kept, although nobody listens"
        time.sleep(1)
    log = (services.root / ".services/prefect.log").read_text()
    services.make("up")
    assert (services.root / ".services/prefect.log").read_text().startswith(log), "it may say why the server died"
    services.prefect.wait(run, "Completed")
    shown = services.prefect.artifacts(run)
    assert {"data-report", "evaluate-progress", "mlflow-run", "scores", "contact-sheet", "verdict"} <= set(shown)
    assert shown["train-progress"] == 100
    assert list(services.prefect.tasks(run).values()) == ["Completed"] * 9


def test_down_ends_a_run_with_its_checkpoint_and_nothing_else(services: Services) -> None:
    services.prefect.start("toyscapes", overrides={"train.images": 84})
    services.checkpoint("toyscapes")
    pids = [service["pid"] for service in services.services().values()]
    with subprocess.Popen(["sleep", "300"]) as bystander:
        try:
            output = services.make("down")
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert "worker   ended" in output
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not services.processes("toyscapes")
    assert (services.checkpoint("toyscapes") / "manifest.json").exists()
    assert not (services.root / "prefect.toml").exists()
    assert "down" in services.make("down"), "nothing is up: nothing to do"

"""Services of `make up` that die or are called by strangers, and what killed runs leave behind."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any

import psutil
import requests

from chaos.faults import Outcome, expect, fault
from chaos.lab import PARAMS, Lab, Project, kill, make_project, tree, until
from chaos.prefect_client import PrefectClient

# Enough to pass the gate.
PASSES = (
    PARAMS[: PARAMS.index("judge:")]
    + """\
judge: {images: 320, batch: 8}
train: {images: 1600, batch: 4, holdout: 16, evaluate_images: 800}
run: {workers: 2, device: cpu, checkpoint_images: 400}
evaluate: {noise_seed: 0}
gate: {approval: true}
"""
)
AWAY_S = 100  # Prefect's client alone asks again for some 70 s
LONG = 1200  # images: a training of more than AWAY_S


class Services:
    """The services of a project."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def make(self, *words: str) -> str:
        return self.project.run(sys.executable, "infra/services.py", *words)

    @property
    def found(self) -> dict[str, Any]:
        return self.project.json(".services/services.json")

    @property
    def prefect(self) -> PrefectClient:
        login = (self.project.root / ".services/prefect-login").read_text().strip()
        return PrefectClient(f"{self.found['prefect']['url']}/api", login)

    @property
    def workspace(self) -> Project:
        """Where its runs work; the registry is the project's."""
        return Project(self.project.root / ".services/workspaces/toyscapes")

    def kill(self, name: str) -> None:
        kill(tree(self.found[name]["pid"]))

    def start(self, images: int) -> str:
        """A run. Each fault trains another number of images: what has finished is not trained again."""
        once = {"train.evaluate_images": images}
        return self.prefect.start("toyscapes", overrides={"train.images": images, **once})

    def begin(self, images: int) -> str:
        """A run that has written a checkpoint."""
        before = self.workspace.newest
        run = self.start(images)
        until(lambda: self.workspace.newest > before, "a checkpoint of the run")
        return run


@cache
def services(lab: Lab) -> Services:
    """Those of one project, up."""
    return _up(lab, lab.copy(lab.prepared, "services"))


def _up(lab: Lab, project: Project) -> Services:
    lab.also(project)
    made = Services(project)
    lab.closing.append(lambda: made.make("down"))
    made.make("up")
    return made


@fault(30, "Prefect's server is away for minutes", "the training and its checkpoints are not touched; progress resumes")
def prefect_away(lab: Lab) -> Outcome:
    up = services(lab)
    run = up.begin(LONG)
    before = up.workspace.newest
    up.kill("prefect")
    until(lambda: up.workspace.newest > before, "the training goes on without the server")
    time.sleep(AWAY_S)
    up.make("up")
    up.prefect.wait(run, "Completed")
    shown = up.prefect.artifacts(run)
    expect(shown.get("train-progress") == 100, f"the progress is {shown.get('train-progress')}")
    return Outcome(f"the server was away for {AWAY_S} s; the run completed, with its progress")


@fault(
    33,
    "a killed run leaves git's index.lock, and DVC's lock with a foreign pid",
    "the next run recovers them",
)
def stale_locks(lab: Lab) -> Outcome:
    up = services(lab)
    run = up.begin(160)
    root = up.workspace.root
    kill([process for process in psutil.process_iter() if str(root) in _folder(process)])
    up.prefect.wait(run, "Crashed")
    (root / ".git/index.lock").touch()
    lock = f'{{"{root}/build/train": {{"write": {{"pid": 1, "cmd": "dvc repro"}}}}}}'
    (root / ".dvc/tmp/rwlock").write_text(lock)
    run = up.start(160)
    up.prefect.wait(run, "Completed")
    return Outcome("the next run of the dataset completed; the training resumed")


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


@fault(25, "a Prefect worker dies with its runs", "its run is marked as crashed, and the next one can start")
def worker_dies(lab: Lab) -> Outcome:
    up = services(lab)
    run = up.begin(200)
    up.kill("worker")
    began = time.monotonic()
    up.prefect.wait(run, "Crashed")
    seconds = time.monotonic() - began
    up.make("up")
    again = up.start(200)
    up.prefect.wait(again, "Completed")
    return Outcome(f"crashed after {seconds:.0f} s; the next run resumed and completed")


@fault(37, "a web page in the operator's browser calls the local services", "refused by origin, host or login")
def foreign_page(lab: Lab) -> Outcome:
    up = services(lab)
    answers = []
    for name, path in (("prefect", "/api/flows/"), ("mlflow", "/api/2.0/mlflow/runs/create")):
        url = up.found[name]["url"] + path
        evil = {"Origin": "https://evil.example", "Content-Type": "application/json"}
        asks = {**evil, "Access-Control-Request-Method": "POST"}
        allowed = requests.options(url, headers=asks, timeout=30).headers.get("access-control-allow-origin")
        expect(allowed not in ("*", evil["Origin"]), f"{name} allows any origin: {allowed}")
        for headers in (evil, {"Host": "evil.example", "Content-Type": "application/json"}):
            status = requests.post(url, json={"name": "evil"}, headers=headers, timeout=30).status_code
            expect(status in (400, 401, 403), f"{name} answers {status} to {headers}")
            answers.append(f"{name} {status}")
    return Outcome(f"no CORS for strangers; a foreign Origin and a foreign Host get {', '.join(answers)}")


@fault(35, "an approval without a reason, and one that fails", "the run is kept; the candidate stays challenger")
def poor_approval(lab: Lab) -> Outcome:
    project = make_project(lab.folder / "approval", PASSES, pairs=(128, 64))
    up = _up(lab, project)
    run = up.prefect.start("toyscapes")
    up.prefect.wait(run, "Paused")
    expect("schema" in project.git("show", "runs/toyscapes:dvc.lock"), "the run is not kept while it waits")
    answer = up.prefect.session.post(
        f"{up.prefect.url}/flow_runs/{run}/resume", json={"run_input": {"promote": True, "reason": ""}}, timeout=60
    )
    refused = answer.status_code >= 400 or answer.json().get("status") == "REJECT"
    if not refused:
        up.prefect.wait(run, "Failed")
        expect("Traceback" not in up.prefect.logs(run), "the log holds a traceback")
    aliases = dict(project.rows("select alias, version from registered_model_aliases"))
    expect(aliases == {"challenger": 1}, f"the aliases are {aliases}")
    project.run("dpgan", "registry", "promote", "challenger", "--reason", "it paints streets")
    return Outcome("kept before the pause; refused without a reason; promoted later by the command line")

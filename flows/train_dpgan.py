"""The flow `train-dpgan`: the stages of dvc.yaml one by one, each a task with its log and its artifacts.

    prefect deployment run train-dpgan/toyscapes --watch     # after `make up`
    python -m flows.train_dpgan                              # without any service

Prefect owns no graph of its own: a task is `dvc repro STAGE`, so what is up to date is not run again. A user's mistake
ends the run as failed, with a sentence and no traceback; only what waiting can mend is tried again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Failed, State

from dpgan.config import PARAMS
from dpgan.errors import UserError
from dpgan.registry.records import AWAITS
from dpgan.registry.tracking import tag_run, tracking_uri
from dpgan.settings import load_yaml
from dpgan.stages import VALIDATION, raw_pointer
from flows import artifacts
from flows.workspace import Workspace, keep, open_workspace, repository

# Task and stage; the first one fixes the version of the data.
STAGES = {
    "version": "index",
    **{name: name for name in ("validate", "prepare", "judge", "train", "evaluate", "promote")},
}
# What a lock, a network or a server that starts again says: waiting may mend it.
PASSES = (
    "Unable to acquire lock",
    "Connection refused",
    "Connection reset",
    "Temporary failure in name resolution",
    "Could not resolve host",
    "Could not connect to the endpoint",
    "does not answer",
)
APPROVAL_S = 24 * 3600


class PassingError(Exception):
    """What may be gone when it is tried again."""


class Approval(RunInput):
    """A person's decision about the candidate."""

    promote: bool
    reason: str


def _passes(task: Any, run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingError)


_tried: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": 30,
    "retry_condition_fn": _passes,
    "cache_policy": NO_CACHE,
}


def _failed(message: str) -> State[Any]:
    """The end of a task by a mistake. What may pass is raised, so that it is tried again."""
    if any(sign in message for sign in PASSES):
        raise PassingError(message)
    return Failed(message=message)


@task(**_tried, task_run_name="workspace")
def enter(dataset: str, revision: str | None, overrides: dict[str, Any]) -> Workspace | State[Any]:
    """Everything is checked before anything starts: revision, overrides, card, raw pairs."""
    log = get_run_logger()
    try:
        made = open_workspace(dataset, revision, overrides, flow_run.get_name() or "run", log.info)
    except UserError as error:
        return _failed(str(error))
    log.info(f"{dataset} at commit {made.commit[:12]} in {made.root}")
    return made


@task(**_tried, task_run_name="{name}")
def run_stage(name: str, workspace: Workspace) -> State[Any] | None:
    """Run one stage; its output becomes the task's log, line by line.

    Cancelling lets the training write a last checkpoint, within `run.grace_s`, and ends all that the stage started.
    """
    commands = [["dvc", "repro", "--single-item", STAGES[name]]]  # those before it have just run
    if name == "version":
        pointer = raw_pointer(Path(workspace.params.raw))
        commands = [*([["dvc", "pull", str(pointer)]] if pointer.exists() else []), ["dvc", "repro", STAGES[name]]]
    show = artifacts.Progress(name)
    try:
        for command in commands:
            _run(workspace, command, show)
    except UserError as error:
        return _failed(f"{name}: {error}")
    finally:
        if name == "validate" and VALIDATION.exists():  # above all where it stops the flow
            artifacts.publish_data_report()
    if name == "train" and not show.linked:  # it was up to date, and printed nothing
        artifacts.publish_run(artifacts.trained_run())
    elif name == "evaluate":
        artifacts.publish_scores()
    return None


def _run(workspace: Workspace, command: list[str], show: Callable[[str], None]) -> None:
    """Run a command of the environment in the workspace; UserError with its last lines where it fails."""
    log = get_run_logger()
    child = [sys.executable, str(Path(__file__).with_name("child.py")), str(workspace.params.run.grace_s)]
    process = subprocess.Popen(
        [*child, sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        pass_fds=[workspace.lock],  # the workspace is taken until the whole tree has ended
        env={**workspace.environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    tail: list[str] = []
    try:
        for line in process.stdout or ():
            if line.strip():
                log.info(line.rstrip())
                show(line.rstrip())
                tail = [*tail[-4:], line.strip()]
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()  # it ends by itself, whatever it has to kill for that
        raise
    if code:
        raise UserError(f"{' '.join(command)} ended with code {code}: {' | '.join(tail)}")


@task(**_tried, task_run_name="approve")
def promote_approved(workspace: Workspace, version: int, reason: str) -> State[Any] | None:
    """Make the version champion, by a person's word."""
    try:
        _run(workspace, ["dpgan.cli", "registry", "promote", str(version), "--reason", reason], lambda _: None)
    except UserError as error:
        return _failed(str(error))
    return None


@task(**_tried, task_run_name="keep")
def keep_run(workspace: Workspace, result: dict[str, Any]) -> State[Any] | None:
    """What ran, in git and in the DVC remote; the MLflow run names the commit."""
    message = f"{flow_run.get_name()}: {result['model']} version {result['version']} {result['verdict']}"
    try:
        commit = keep(workspace, message)
    except UserError as error:
        return _failed(str(error))
    tag_run(tracking_uri(Path.cwd()), artifacts.trained_run(), {"git.run": f"{workspace.branch} {commit}"})
    get_run_logger().info(f"kept as {commit[:12]} on the branch {workspace.branch}")
    return None


@flow(name="train-dpgan")
def train_dpgan(
    dataset: str | None = None,
    revision: str | None = None,
    overrides: dict[str, Any] | None = None,
    workers: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    approval: bool | None = None,
) -> dict[str, Any] | State[Any]:
    """From raw pairs to the registry.

    Args:
        dataset: A folder of data/; default: that of params.yaml.
        revision: Branch, tag or commit that is trained; default: HEAD of the repository.
        overrides: Of keys of params.yaml: {"train.images": 600}.
        workers: Of the training, each on one GPU where `device` finds any.
        device: Where they train; auto: on GPUs where there are any.
        approval: Whether a candidate that the gate lets pass waits for a person (a day; then it stays challenger).
    """
    own = {"run.workers": workers, "run.device": device, "gate.approval": approval}
    asked = {**(overrides or {}), **{key: value for key, value in own.items() if value is not None}}
    if dataset is None:
        dataset = str(load_yaml(Path(__file__).absolute().parent.parent / PARAMS)["dataset"])
    if folder := repository()[1]:
        os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(folder))
    try:
        return _run_stages(_value(enter(dataset, revision, asked, return_state=True)))
    except UserError as error:
        return Failed(message=str(error))


def _run_stages(workspace: Workspace) -> dict[str, Any]:
    """All stages in the workspace, and a person's decision where one is waited for; what the registry made of it."""
    with contextlib.chdir(workspace.root):
        for name in STAGES:
            _value(run_stage(name, workspace, return_state=True))
        result = artifacts.publish_verdict()
        if result["verdict"] == AWAITS:
            decision = pause_flow_run(wait_for_input=Approval, timeout=APPROVAL_S)
            if decision.promote:
                _value(promote_approved(workspace, result["version"], decision.reason, return_state=True))
                result |= {"verdict": "promoted by hand", "champion": result["version"]}
        _value(keep_run(workspace, result, return_state=True))
    return result


def _value(state: State[Any]) -> Any:
    """What a task made; UserError with what it said where it did not end well."""
    if not state.is_completed():
        raise UserError(state.message)
    return state.result()


if __name__ == "__main__":
    print(train_dpgan())

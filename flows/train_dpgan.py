"""The flow `train-dpgan`: the stages of dvc.yaml one by one, each a task with its log and its artifacts.

    prefect deployment run train-dpgan/toyscapes --watch     # after `make up`
    python -m flows.train_dpgan                              # without any service

Prefect owns no graph of its own: a task is `dvc repro STAGE`, so what is up to date is not run again. A user's mistake
ends the run as failed, with a sentence and no traceback; only what may pass is tried again. Prefect's server may go
away meanwhile: no stage waits for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Failed, State
from pydantic import Field, ValidationError

from dpgan.config import PARAMS
from dpgan.errors import TemporaryError, UserError
from dpgan.registry.outage import may_pass
from dpgan.registry.records import AWAITS
from dpgan.registry.spool import replay_all
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import tag_run
from dpgan.settings import load_yaml
from dpgan.stages import VALIDATION, raw_pointer
from flows import artifacts, stage
from flows.workspace import Workspace, keep, open_workspace, repository

# Task and stage; the first one fixes the version of the data.
STAGES = {
    "version": "index",
    **{name: name for name in ("validate", "prepare", "judge", "train", "evaluate", "promote")},
}
APPROVAL_S = 24 * 3600
PREFECT_S = 24 * 3600  # a run whose work is done waits for a server that is away, to report its end
SHOW_S = 60  # at the end, for the artifacts that are not sent yet
BOARD = artifacts.Board()


class Approval(RunInput):
    """A person's decision about the candidate."""

    promote: bool
    reason: str = Field(min_length=1, pattern=r"\S")


def _passes(task: Any, run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), TemporaryError)


_tried: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": 30,
    "retry_condition_fn": _passes,
    "cache_policy": NO_CACHE,
}


def _failed(error: UserError) -> State[Any]:
    """The end of a task by a mistake. What may pass is raised: Prefect tries again only what raises."""
    if isinstance(error, TemporaryError):
        raise error
    return Failed(message=str(error))


@task(**_tried, task_run_name="workspace")
def enter(dataset: str, revision: str | None, overrides: dict[str, Any]) -> Workspace | State[Any]:
    """Everything is checked before anything starts: revision, overrides, card, raw pairs."""
    log = get_run_logger()
    try:
        made = open_workspace(dataset, revision, overrides, flow_run.get_name() or "run", log.info)
    except UserError as error:
        return _failed(error)
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
    linked = False  # to its MLflow run

    def show(record: stage.Record) -> None:
        nonlocal linked
        if record["kind"] == "progress":
            BOARD.show(f"{name}-progress", artifacts.progress(record["done"], record["total"], record["text"]))
        elif record["kind"] == "run":
            linked = True
            BOARD.show("mlflow-run", partial(artifacts.mlflow_run, workspace.root, record["run_id"]))

    try:
        for command in commands:
            stage.run(workspace, command, get_run_logger().info, show)
    except UserError as error:
        return _failed(type(error)(f"{name}: {error}"))
    finally:
        if name == "validate" and VALIDATION.exists():  # above all if it stops the flow
            BOARD.show("data-report", artifacts.data_report())
    if name == "train" and not linked:  # it was up to date, and reported nothing
        BOARD.show("mlflow-run", partial(artifacts.mlflow_run, workspace.root, artifacts.trained_run()))
    elif name == "evaluate":
        BOARD.show("scores", artifacts.scores())
        BOARD.show("contact-sheet", artifacts.contact_sheet())
    return None


@task(**_tried, task_run_name="approve")
def promote_approved(workspace: Workspace, version: int, reason: str) -> State[Any] | None:
    """Make the version champion, by a person's word."""
    command = ["dpgan.cli", "registry", "promote", str(version), f"--reason={reason}"]
    try:
        stage.run(workspace, command, get_run_logger().info, lambda _: None)
    except UserError as error:
        return _failed(error)
    return None


@task(**_tried, task_run_name="keep")
def keep_run(workspace: Workspace, result: dict[str, Any]) -> State[Any] | None:
    """What ran, in git and in the DVC remote; the MLflow run names the commit."""
    message = f"{flow_run.get_name()}: {result['model']} version {result['version']} {result['verdict']}"
    try:
        commit = keep(workspace, message)
        replay_all(Path.cwd())  # what the stages could not send to MLflow
        tag_run(tracking_uri(Path.cwd()), artifacts.trained_run(), {"git.run": f"{workspace.branch} {commit}"})
    except UserError as error:
        return _failed(error)
    except Exception as error:
        if may_pass(error):
            raise TemporaryError(f"keep: {error}") from error
        raise
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
        workspace = _value(enter(dataset, revision, asked, return_state=True))
        try:
            result: dict[str, Any] | State[Any] = _run_stages(workspace)
        finally:
            os.close(workspace.lock)  # the next run of the dataset need not wait for Prefect's server
    except UserError as error:
        result = Failed(message=str(error))
    _wait_for_prefect()
    if unsent := BOARD.flush(SHOW_S):
        get_run_logger().warning(f"Prefect's server did not take the artifacts {', '.join(unsent)}")
    return result


def _run_stages(workspace: Workspace) -> dict[str, Any]:
    """All stages in the workspace, and a person's decision if one is waited for; what the registry made of it."""
    with contextlib.chdir(workspace.root):
        for name in STAGES:
            _value(run_stage(name, workspace, return_state=True))
        result = artifacts.promotion()
        BOARD.show("verdict", artifacts.verdict(result))
        _value(keep_run(workspace, result, return_state=True))  # before the pause: a decision may never come
        if result["verdict"] == AWAITS and (reason := _approval(result)) is not None:
            _value(promote_approved(workspace, result["version"], reason, return_state=True))
            result |= {"verdict": "promoted by hand", "champion": result["version"]}
            _value(keep_run(workspace, result, return_state=True))
    return result


def _approval(result: dict[str, Any]) -> str | None:
    """The reason of the person who promotes the candidate; None if they decline. UserError if nobody decides."""
    version = result["version"]
    later = f"version {version} stays challenger; later: dpgan registry promote {version} --reason ..."
    _wait_for_prefect()
    try:
        decision = pause_flow_run(wait_for_input=Approval, timeout=APPROVAL_S)
    except FlowPauseTimeout:
        raise UserError(f"nobody decided within {APPROVAL_S / 3600:g} hours; {later}") from None
    except ValidationError:
        raise UserError(f"the decision came without a reason; {later}") from None
    except httpx.HTTPError as error:
        raise UserError(f"Prefect's server went away before the decision came ({error}); {later}") from None
    return decision.reason if decision.promote else None


def _wait_for_prefect() -> None:
    """Until Prefect's server answers, a day at most: what a run has to report next is reported once."""
    client = get_client(sync_client=True)
    deadline = time.monotonic() + PREFECT_S
    while client.api_healthcheck() is not None and time.monotonic() < deadline:
        time.sleep(5)


def _value(state: State[Any]) -> Any:
    """What a task made; UserError with its message if it did not end well."""
    if not state.is_completed():
        raise UserError(state.message)
    return state.result()


if __name__ == "__main__":
    print(train_dpgan())

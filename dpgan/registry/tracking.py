"""Runs in MLflow: opened, tagged, read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from dpgan.registry.spool import replay_all
from dpgan.registry.store import artifacts_beside, database, need_server, tracking_uri, usable_store

_PARAMS_PER_CALL = 100  # MLflow's limits for one log_batch
_PARAM_LENGTH = 6000


def open_store(root: Path) -> str:
    """The tracking store's URI, after it was sent what earlier commands could not send.

    UserError if the store cannot be used now: what is wrong with it, and what to do.
    """
    uri = usable_store(root)
    replay_all(root)
    return uri


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_PARAM_LENGTH]


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id. Without a server the artifacts lie next to the database: never below the cwd."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    file = database(uri)
    artifacts = None if file is None else (artifacts_beside(file) / name).as_uri()
    # The kind makes the UI show charts of a training, not the pages for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=artifacts, tags=kind))


def open_run(
    root: Path,
    dataset: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None = None,
) -> str:
    """The id of a RUNNING run in experiment `dpgan-<dataset>`: `run_id` continued, or a new run.

    A `run_id` that the store does not know gives a new run. `params` may be nested: names are joined by dots;
    they are written once, with the new run. UserError if the store cannot be used.
    """
    uri = open_store(root)
    client = MlflowClient(uri)
    if run_id is not None and is_active(client, run_id):
        client.update_run(run_id, status="RUNNING")
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        return run_id
    run = client.create_run(_experiment(client, uri, f"dpgan-{dataset}"), tags=dict(tags), run_name=name)
    flat = [Param(key, value) for key, value in _flatten(params)]
    for start in range(0, len(flat), _PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=flat[start : start + _PARAMS_PER_CALL])
    return str(run.info.run_id)


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Sets tags of a run, also of one that has ended."""
    need_server(uri)
    client = MlflowClient(uri)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def run_url(root: Path, run_id: str) -> str | None:
    """Where the tracking server shows a run; None where the store has no server."""
    uri = tracking_uri(root)
    if not uri.startswith("http"):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{MlflowClient(uri).get_run(run_id).info.experiment_id}/runs/{run_id}"


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether the store knows the run, and it is not deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def history(root: Path, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """(images seen, value) of a run's metrics, by name; those without a value are left out. UserError if the store
    cannot be used."""
    client = MlflowClient(open_store(root))
    points = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}
    return {name: sorted(found) for name, found in points.items() if found}

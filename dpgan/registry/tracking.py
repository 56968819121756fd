"""Runs, metrics and images in MLflow. A tracking server that goes away does not stop a training."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from dpgan.errors import UserError

log = logging.getLogger(__name__)

_PARAMS_PER_CALL = 100  # MLflow's limits for one log_batch
_PARAM_LENGTH = 6000
_RECORD, _IMAGE = "record.json", "image.png"


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite file below the project's root folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlruns' / 'mlflow.db'}"


def server_is_up(uri: str) -> bool:
    """Whether the tracking server answers within two seconds; a store without a server always does."""
    if not uri.startswith("http"):
        return True
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # a proxy that asks for a password is up, one without a backend is not
    except OSError:
        return False
    return True


def need_server(uri: str) -> None:
    """UserError where the tracking server does not answer."""
    if not server_is_up(uri):
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri}: the tracking server does not answer; start it and run this again, "
            "or unset MLFLOW_TRACKING_URI to use the project's own mlruns/mlflow.db"
        )


def open_store(root: Path) -> str:
    """The tracking store's URI, where it can be used now; UserError where the server does not answer."""
    uri = tracking_uri(root)
    need_server(uri)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return uri


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_PARAM_LENGTH]


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id. Without a server the artifacts lie beside the database: never below the cwd."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = uri.removeprefix("sqlite:///")
    artifacts = None if local == uri else (Path(local).parent / "artifacts" / name).as_uri()
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
    they are written once, with the new run. Raises UserError where the server does not answer.
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
    """(images seen, value) of a run's metrics, by name; those without a value are left out. UserError where the
    server does not answer."""
    client = MlflowClient(open_store(root))
    points = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}
    return {name: sorted(found) for name, found in points.items() if found}


@dataclass(frozen=True)
class Tracker:
    """Writes to one run from any process; pickles, and holds no connection.

    What cannot be sent is kept in the folder `spool`, a folder a record, and is sent in order before the next
    record, or by `replay`. A metric keeps its own time, so that sending it twice
    stores it once.
    """

    uri: str
    run_id: str
    spool: Path

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs values by name ("loss/G_total", "eval/fid_lite0") at `step` (images seen), in one call."""
        numbers = {name: float(value) for name, value in values.items()}
        self._log({"kind": "metrics", "values": numbers, "step": step})

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Logs an image, uint8 [H, W, 3]; the UI shows a key with a slider over steps."""
        self._log({"kind": "image", "key": key, "step": step}, image)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or what is in a folder, into a folder of the run's artifacts."""
        self._log({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def text(self, content: str, name: str) -> None:
        """Stores a text as the artifact file `name`."""
        self._log({"kind": "text", "content": content, "name": name})

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._log({"kind": "tags", "values": dict(values)})

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self._log({"kind": "finish", "status": status})

    def replay(self) -> bool:
        """Sends what is spooled, oldest first, each record once; True where nothing is left."""
        for folder in sorted(self.spool.glob("[0-9]*")):
            record = json.loads((folder / _RECORD).read_text())
            image = np.asarray(Image.open(folder / _IMAGE)) if record["kind"] == "image" else None
            if record["kind"] == "artifact":
                record["path"] = str(folder / record["path"])
            if not self._send(record, image):
                return False
            shutil.rmtree(folder)
        return True

    def _log(self, record: dict[str, Any], image: np.ndarray | None = None) -> None:
        record["time"] = time.time_ns() // 1_000_000
        if not (self.replay() and self._send(record, image)):
            self._keep(record, image)

    def _keep(self, record: dict[str, Any], image: np.ndarray | None) -> None:
        name = f"{time.time_ns():020d}"
        aside = self.spool / f"part-{name}"
        aside.mkdir(parents=True)
        if image is not None:
            Image.fromarray(image).save(aside / _IMAGE)
        if record["kind"] == "artifact":  # copied: the file may change before it is sent
            path = Path(record["path"])
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            record["path"] = Path(copy(path, aside / path.name)).name
        (aside / _RECORD).write_text(json.dumps(record))
        aside.rename(self.spool / name)

    def _send(self, record: dict[str, Any], image: np.ndarray | None) -> bool:
        """Whether the store took the record."""
        if not server_is_up(self.uri):  # asked first: the client alone would retry for many seconds
            log.warning("MLflow at %s does not answer; keeping records in %s", self.uri, self.spool)
            return False
        try:
            self._write(MlflowClient(self.uri), record, image)
        # Whatever store or upload library failed: the training goes on, and the record is kept.
        except Exception as error:
            log.warning("MLflow at %s: %s; keeping records in %s", self.uri, error, self.spool)
            return False
        return True

    def _write(self, client: MlflowClient, record: dict[str, Any], image: np.ndarray | None) -> None:
        match record["kind"]:
            case "metrics":
                time_step = record["time"], record["step"]
                client.log_batch(self.run_id, [Metric(k, v, *time_step) for k, v in record["values"].items()])
            case "image":
                where = {"key": record["key"], "step": record["step"], "timestamp": record["time"]}
                client.log_image(self.run_id, image, **where)
            case "artifact":
                upload = client.log_artifacts if Path(record["path"]).is_dir() else client.log_artifact
                upload(self.run_id, record["path"], record["folder"])
            case "text":
                client.log_text(self.run_id, record["content"], record["name"])
            case "tags":
                client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in record["values"].items()])
            case "finish":
                client.set_terminated(self.run_id, record["status"], end_time=record["time"])

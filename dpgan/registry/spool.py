"""Metrics, images and files on their way to MLflow: first to disk, then sent from a thread.

A training never waits for its tracking server. Every record is a folder in `runs/spool`, and leaves it when the store
has it; what one command could not send, the next one sends. There is one sender at a time for all runs and processes
that use the folder, so that records arrive in order.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from dpgan.registry.store import server_is_up, tracking_uri

log = logging.getLogger(__name__)

REST_S = 60  # after a failure the store is left alone for so long
END_S = 20  # how long the end of a run waits for what is not sent yet
_RECORD = "record.json"
_THUMBNAIL = (256, 256)  # the size at which MLflow's UI shows images in a grid


def spool_folder(root: Path) -> Path:
    """Where the project's records wait."""
    return root.absolute() / "runs" / "spool"


def replay_all(root: Path) -> bool:
    """Sends what earlier stages and commands could not send, whatever run it belongs to; whether nothing is left."""
    return drain(spool_folder(root), tracking_uri(root), END_S)


class Tracker:
    """Writes to one run from any process, without waiting for the store; pickles, and holds no connection.

    A record carries its own time, so that a metric that is sent twice is stored once.
    """

    def __init__(self, uri: str, run_id: str, spool: Path) -> None:
        self.uri, self.run_id, self.spool = uri, run_id, spool
        self._asks: SimpleQueue[Future[bool]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._rests_until = 0.0

    @classmethod
    def of(cls, root: Path, run_id: str) -> Tracker:
        """The tracker of a run of the project's store."""
        return cls(tracking_uri(root), run_id, spool_folder(root))

    def __reduce__(self) -> tuple[type[Tracker], tuple[str, str, Path]]:
        return Tracker, (self.uri, self.run_id, self.spool)

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
        """Ends the run as FINISHED, FAILED or KILLED, and waits some seconds for what is not sent yet."""
        self._log({"kind": "finish", "status": status})
        self.replay()

    def replay(self, wait_s: float = END_S) -> bool:
        """Waits until everything is sent, `wait_s` at most; whether nothing is left. The rest stays in the spool."""
        self._rests_until = 0.0
        try:
            return self._ask().result(wait_s)
        except TimeoutError:
            log.warning("MLflow at %s takes longer than %g s; what is left stays in %s", self.uri, wait_s, self.spool)
            return False

    def _log(self, record: dict[str, Any], image: np.ndarray | None = None) -> None:
        keep(self.spool, {"run_id": self.run_id, **record}, image)
        if self._asks.empty():  # else a sender is about to look
            self._ask()

    def _ask(self) -> Future[bool]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)
            self._thread.start()
        ask: Future[bool] = Future()
        self._asks.put(ask)
        return ask

    def _serve(self) -> None:
        while True:
            ask = self._asks.get()
            if time.monotonic() < self._rests_until:
                ask.set_result(False)
                continue
            try:
                sent = drain(self.spool, self.uri, END_S)
            except Exception:  # the thread must live: the records are there still
                log.exception("%s: its records are sent later", self.spool)
                sent = False
            if not sent:
                self._rests_until = time.monotonic() + REST_S
            ask.set_result(sent)


def keep(spool: Path, record: dict[str, Any], image: np.ndarray | None = None) -> None:
    """Writes a record, and what it sends, into the spool; it appears whole or not at all."""
    now = time.time_ns()
    record["time"] = now // 1_000_000
    name = f"{now:020d}-{uuid.uuid4().hex[:8]}"  # several processes write here
    aside = spool / f"part-{name}"
    aside.mkdir(parents=True)
    if image is not None:
        # MLflow's name for an image, with an id of our own: sending it twice makes one image.
        stem = f"{record['key'].replace('/', '~')}+step+{record['step']}+timestamp+{record['time']}+{uuid.uuid4()}"
        picture = Image.fromarray(image)
        (aside / "images").mkdir()
        picture.save(aside / "images" / f"{stem}.png")
        picture.thumbnail(_THUMBNAIL)
        picture.save(aside / "images" / f"{stem}+compressed.webp")
    if record["kind"] == "artifact":  # copied: the file may change before it is sent
        path = Path(record["path"])
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        record["path"] = Path(copy(path, aside / path.name)).name
    (aside / _RECORD).write_text(json.dumps(record))
    aside.rename(spool / name)


def drain(spool: Path, uri: str, wait_s: float = 0) -> bool:
    """Sends what is spooled, oldest first, each record once; whether nothing is left.

    Waits `wait_s` at most for another process that sends from the same folder. Records of runs that the store does not
    know are left: they belong to another store. What the store will never take is set aside as `refused-...`.
    """
    if not _records(spool):
        return True
    if not server_is_up(uri):  # asked first: the client alone would retry for many seconds
        log.warning("MLflow at %s does not answer; keeping records in %s", uri, spool)
        return False
    foreign: set[str] = set()  # runs of another store
    with _alone(spool, wait_s) as alone:
        # Listed again until nothing new is there: records may have come while others were sent.
        while alone and (left := [folder for folder in _records(spool) if _run_of(folder) not in foreign]):
            for folder in left:
                if _run_of(folder) not in foreign and not _deliver(folder, uri, foreign):
                    return False
    if foreign:
        log.warning("%s holds records of runs that MLflow at %s does not know: %s; set MLFLOW_TRACKING_URI to their "
                    "store, or delete the folder", spool, uri, ", ".join(sorted(foreign)))  # fmt: skip
    return alone and not foreign


def _records(spool: Path) -> list[Path]:
    return sorted(spool.glob("[0-9]*"))


def _read(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None if a power cut has left none."""
    try:
        content: dict[str, Any] = json.loads((folder / _RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _run_of(folder: Path) -> str | None:
    record = _read(folder)
    return None if record is None else str(record["run_id"])


def _deliver(folder: Path, uri: str, foreign: set[str]) -> bool:
    """Sends a record and deletes it; whether the next one can be sent. A run that the store does not know becomes
    one of `foreign`."""
    record = _read(folder)
    if record is None:
        _set_aside(folder, "it cannot be read")
        return True
    try:
        _write(MlflowClient(uri), record, folder)
    # Whatever store or upload library failed: the training continues, and the record is kept.
    except Exception as error:
        code = error.error_code if isinstance(error, MlflowException) else None
        if code == "RESOURCE_DOES_NOT_EXIST":
            foreign.add(record["run_id"])
            return True
        if code == "INVALID_PARAMETER_VALUE":  # it will never be taken, and must not hold up the others
            _set_aside(folder, f"MLflow at {uri} refuses it: {error}")
            return True
        log.warning("MLflow at %s: %s; keeping records in %s", uri, error, folder.parent)
        return False
    shutil.rmtree(folder)
    return True


def _set_aside(folder: Path, why: str) -> None:
    aside = folder.rename(folder.with_name(f"refused-{folder.name}"))
    log.warning("A record is kept in %s: %s", aside, why)


def _write(client: MlflowClient, record: Mapping[str, Any], folder: Path) -> None:
    run_id = record["run_id"]
    match record["kind"]:
        case "metrics":
            time_step = record["time"], record["step"]
            client.log_batch(run_id, [Metric(k, v, *time_step) for k, v in record["values"].items()])
        case "image":
            client.log_artifacts(run_id, str(folder / "images"), "images")
            client.set_tag(run_id, "mlflow.loggedImages", True)
        case "artifact":
            path = folder / record["path"]
            upload = client.log_artifacts if path.is_dir() else client.log_artifact
            upload(run_id, str(path), record["folder"])
        case "text":
            client.log_text(run_id, record["content"], record["name"])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in record["values"].items()])
        case "finish":
            client.set_terminated(run_id, record["status"], end_time=record["time"])


@contextmanager
def _alone(spool: Path, wait_s: float) -> Iterator[bool]:
    """Whether this process is the sender; the kernel frees the lock when its holder dies."""
    deadline = time.monotonic() + wait_s
    with (spool / "lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                yield True
                return

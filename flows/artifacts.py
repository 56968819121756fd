"""What a run of the flow shows in Prefect's UI, from what its stages left; the workspace is the current folder.

All of it is best effort: a thread sends it, so that a server that is away, or slow, delays nobody.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.utilities.context import get_task_and_flow_run_ids

from dpgan.registry.tracking import run_url
from dpgan.stages import EVALUATION, PROMOTION, SCORES, TRAINED, VALIDATION

AGAIN_S = 10.0  # between two tries while a server is away
_log = logging.getLogger("prefect.flow_runs")
Content = tuple[str, Any, str | None]  # an artifact's type, data and description


class Board:
    """Sends artifacts from a thread: of one key the newest, again and again until it has arrived."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[tuple[UUID | None, UUID | None], Callable[[], Content | None]]] = {}
        self._shown: dict[tuple[str, UUID | None], UUID] = {}  # what a later one of the same task replaces
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def show(self, key: str, content: Content | Callable[[], Content | None]) -> None:
        """Show an artifact of the task that calls. A function is called by the thread: it may ask a server, and
        returns None if there is nothing to show."""
        make = content if callable(content) else lambda: content
        with self._changed:
            self._waiting[key] = get_task_and_flow_run_ids(), make
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="artifacts", daemon=True)
                self._thread.start()

    def flush(self, within_s: float) -> list[str]:
        """Wait until all is sent, but not longer than that; the keys of what is not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, within_s)
            return sorted(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                key, job = next(iter(self._waiting.items()))
            try:
                self._send(key, *job)
                sent = True
            except Exception as error:  # whatever Prefect or MLflow raise: a run does not end by what it cannot show
                _log.debug("artifact %s: %r", key, error)
                sent = False
            with self._changed:
                if not sent:
                    self._waiting[key] = self._waiting.pop(key)  # to the end of the queue
                    self._changed.wait(AGAIN_S)
                elif self._waiting[key] is job:
                    del self._waiting[key]
                    self._changed.notify_all()

    def _send(self, key: str, run: tuple[UUID | None, UUID | None], make: Callable[[], Content | None]) -> None:
        content = make()
        if content is None:
            return
        task, flow = run
        kind, data, description = content
        with get_client(sync_client=True) as client:
            if shown := self._shown.get((key, task)):
                client.update_artifact(shown, ArtifactUpdate(data=data, description=description))
            else:
                made = ArtifactCreate(
                    key=key, type=kind, data=data, description=description, task_run_id=task, flow_run_id=flow
                )
                self._shown[key, task] = client.create_artifact(made).id


def progress(done: int, total: int, text: str) -> Content:
    """How far a stage is."""
    return "progress", 100.0 * done / max(total, 1), text


def trained_run() -> str:
    """The id of the MLflow run of the finished training."""
    return str(json.loads((TRAINED / "manifest.json").read_text())["run_id"])


def mlflow_run(root: Path, run_id: str) -> Content | None:
    """A link to an MLflow run; None if no server serves it."""
    url = run_url(root, run_id)
    return ("markdown", f"[MLflow run {run_id}]({url})", "losses, scores, files") if url else None


def data_report() -> Content:
    """What the data contract found, which pairs stay out, and where the whole report is."""
    found = json.loads((VALIDATION / "findings.json").read_text())
    quarantined = json.loads((VALIDATION / "quarantine.json").read_text())
    pairs = ", ".join(f"{count} pairs in {split}" for split, count in found["pairs"].items())
    lines = [f"**{found['dataset']}**: {pairs}; {len(quarantined)} quarantined", ""]
    lines += (
        ["| | pairs | expectation that is not met | what to do |", "|---|---|---|---|"] if found["findings"] else []
    )
    lines += [f"| {f['severity']} | {f['count']} | {f['expectation']} | {f['remedy']} |" for f in found["findings"]]
    lines += ["", f"The whole report: `{(VALIDATION / 'report.html').absolute()}`, and `data/report.html` among the "
              "artifacts of the MLflow run"]  # fmt: skip
    return "markdown", "\n".join(lines), None


def scores() -> Content:
    """The scores as a table."""
    found = json.loads(SCORES.read_text(), parse_constant=lambda _: None)  # JSON has no NaN
    rows = [{"images": name, **found[name]} for name in ("floor", "last", "best", "ceiling")]
    return "table", json.dumps(rows), f"{found['n']} validation label maps"


def contact_sheet() -> Content:
    """Label maps, photos and generated images as a picture."""
    picture = io.BytesIO()
    Image.open(EVALUATION / "contact_sheet.png").convert("RGB").save(picture, "JPEG", quality=88)
    url = f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"
    return "image", url, "label map | real photo | generated"


def promotion() -> dict[str, Any]:
    """What the gate decided: promotion.json."""
    found: dict[str, Any] = json.loads(PROMOTION.read_text())
    return found


def verdict(found: Mapping[str, Any]) -> Content:
    """What the gate said, and which version is champion."""
    lines = [f"**{found['model']} version {found['version']}: {found['verdict']}**", ""]
    lines += [f"- {reason}" for reason in found["reasons"]]
    lines += ["", f"Champion: version {found['champion']}"]
    return "markdown", "\n".join(lines), None

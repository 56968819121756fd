"""What a run of the flow shows in Prefect's UI, from what its stages left; the workspace is the current folder."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from dpgan.registry.tracking import run_url
from dpgan.stages import EVALUATION, PROMOTION, SCORES, TRAINED, VALIDATION

PROGRESS = re.compile(r"^(\w+) +(\d+)/(\d+) (.*)$")  # dpgan.progress
_RUN = re.compile(r"MLflow run (\w+)$")  # dpgan.stages.train


class Progress:
    """The progress of a stage as an artifact, and a link to its MLflow run, both from the lines that it prints."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.shown: UUID | None = None
        self.linked = False  # to its MLflow run

    def __call__(self, line: str) -> None:
        if found := PROGRESS.match(line):
            done, total = int(found[2]), int(found[3])
            percent = 100.0 * done / max(total, 1)
            if self.shown is None:
                self.shown = create_progress_artifact(percent, key=f"{self.stage}-progress", description=line)
            else:
                update_progress_artifact(self.shown, progress=percent, description=line)
        elif found := _RUN.search(line):
            self.linked = True
            publish_run(found[1])


def trained_run() -> str:
    """The id of the MLflow run of the finished training."""
    return str(json.loads((TRAINED / "manifest.json").read_text())["run_id"])


def publish_run(run_id: str) -> None:
    """A link to an MLflow run; none where no server serves it."""
    if url := run_url(Path.cwd(), run_id):
        create_link_artifact(
            url, link_text=f"MLflow run {run_id}", key="mlflow-run", description="losses, scores, files"
        )


def publish_data_report() -> None:
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
    create_markdown_artifact("\n".join(lines), key="data-report")


def publish_scores() -> None:
    """The scores as a table, the contact sheet as a picture."""
    scores = json.loads(SCORES.read_text())
    rows = [{"images": name, **scores[name]} for name in ("floor", "last", "best", "ceiling")]
    create_table_artifact(rows, key="scores", description=f"{scores['n']} validation label maps")
    picture = io.BytesIO()
    Image.open(EVALUATION / "contact_sheet.png").convert("RGB").save(picture, "JPEG", quality=88)
    url = f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"
    create_image_artifact(url, key="contact-sheet", description="label map | real photo | generated")


def publish_verdict() -> dict[str, Any]:
    """What the gate said, and who is champion; what promotion.json says."""
    promotion: dict[str, Any] = json.loads(PROMOTION.read_text())
    lines = [f"**{promotion['model']} version {promotion['version']}: {promotion['verdict']}**", ""]
    lines += [f"- {reason}" for reason in promotion["reasons"]]
    lines += ["", f"Champion: version {promotion['champion']}"]
    create_markdown_artifact("\n".join(lines), key="verdict")
    return promotion

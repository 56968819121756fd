"""The flow `train-dpgan`: the stages of dvc.yaml one by one, each a task with its log and its artifacts.

    python -m flows.train_dpgan

Prefect owns no graph of its own: a task is `dvc repro STAGE`, so what is up to date is not run again.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from dpgan.config import load_params
from dpgan.stages import EVALUATION, PROMOTION, SCORES, VALIDATION

STAGES = ("index", "validate", "prepare", "judge", "train", "evaluate", "promote")
LOCKED = "Unable to acquire lock"


class StageFailedError(Exception):
    """A stage ended with an error; its log says which."""


class PipelineLockedError(StageFailedError):
    """Another `dvc` holds the pipeline's lock: the one failure that waiting mends."""


def _locked(task: Any, run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), PipelineLockedError)


@task(task_run_name="{stage}", retries=3, retry_delay_seconds=30, retry_condition_fn=_locked)
def run_stage(stage: str) -> None:
    """Run one stage; its output becomes the task's log, line by line.

    Cancelling lets the training write a last checkpoint, within `run.grace_s`, and ends all that the stage started.
    """
    log = get_run_logger()
    grace_s = load_params().run.grace_s
    command = [sys.executable, "-m", "flows.child", str(grace_s), sys.executable, "-m", "dvc", "repro", stage]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    tail: list[str] = []
    try:
        for line in process.stdout or ():
            if line.strip():
                log.info(line.rstrip())
                tail = [*tail[-4:], line.strip()]
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()  # it ends by itself, whatever it has to kill for that
        raise
    if code:
        kind = PipelineLockedError if any(LOCKED in line for line in tail) else StageFailedError
        raise kind(f"stage {stage} ended with code {code}: {' | '.join(tail)}")


@task
def publish_data_report() -> None:
    """Artifact: what the data contract found, which pairs stay out, and where the whole report is."""
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


@task
def publish_scores() -> None:
    """Artifacts: the scores as a table, the contact sheet as a picture."""
    scores = json.loads(SCORES.read_text())
    rows = [{"images": name, **scores[name]} for name in ("floor", "last", "best", "ceiling")]
    create_table_artifact(rows, key="scores", description=f"{scores['n']} validation label maps")
    picture = io.BytesIO()
    Image.open(EVALUATION / "contact_sheet.png").convert("RGB").save(picture, "JPEG", quality=88)
    url = f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"
    create_image_artifact(url, key="contact-sheet", description="label map | real photo | generated")


@task
def publish_verdict() -> dict[str, Any]:
    """Artifact: what the gate said, and who is champion."""
    promotion: dict[str, Any] = json.loads(PROMOTION.read_text())
    verdict = "promoted" if promotion["promoted"] else "refused"
    lines = [f"**{promotion['model']} version {promotion['version']}: {verdict}**", ""]
    lines += [f"- {reason}" for reason in promotion["reasons"]]
    lines += ["", f"Champion: version {promotion['champion']}"]
    create_markdown_artifact("\n".join(lines), key="verdict")
    return promotion


@flow(name="train-dpgan")
def train_dpgan() -> dict[str, Any]:
    """From raw pairs to the registry, for the dataset that params.yaml names."""
    for stage in STAGES:
        try:
            run_stage(stage)
        finally:
            if stage == "validate" and VALIDATION.exists():  # above all where it has stopped the flow
                publish_data_report()
        if stage == "evaluate":
            publish_scores()
    return publish_verdict()


if __name__ == "__main__":
    print(train_dpgan())

"""The pipeline as its users run it: dvc, the registry, a process without this package. Tests run in their order."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan.data.prepare import open_prepared
from dpgan.evaluation.intervals import load_estimates

from .conftest import Project

HANDOFF = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dpgan": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/dpgan-toyscapes@champion")
labels = np.full((40, 72), 7, np.uint8); labels[:20] = 23
photo = model.predict(labels, params={"seed": 1})
assert photo.shape == (40, 72, 3) and photo.dtype == np.uint8, (photo.shape, photo.dtype)
assert (photo == model.predict(labels, params={"seed": 1})).all()
print("painted")
"""


def promotion(project: Project) -> dict[str, object]:
    content: dict[str, object] = json.loads((project.root / "build/promotion.json").read_text())
    return content


def runs(project: Project) -> list[tuple[str, str]]:
    """(run id, status) of every MLflow run."""
    with sqlite3.connect(project.root / "mlruns/mlflow.db") as database:
        return list(database.execute("select run_uuid, status from runs order by start_time"))


def newest_checkpoint(project: Project) -> int:
    """Images seen at the newest complete checkpoint of the one run; 0 without one."""
    found = project.root.glob("runs/toyscapes-*/checkpoints/images_*")
    return max((int(path.name.removeprefix("images_")) for path in found), default=0)


def interrupt(project: Project, number: signal.Signals, *command: str) -> tuple[int, str]:
    """Start a command, send its process group a signal behind the next checkpoint: exit code and output."""
    before, deadline = newest_checkpoint(project), time.monotonic() + 300
    with project.start(*command) as process:
        while newest_checkpoint(project) == before and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.05)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output, output
    assert not (project.root / "build/train").exists()
    return process.returncode, output


def children(project: Project) -> list[str]:
    """Command lines of the processes that work for the project: Ray's, its workers' and our own."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if str(project.root) in line]


def test_interrupted_in_train_it_goes_on_from_the_last_checkpoint(project: Project) -> None:
    """Ctrl-c, SIGTERM, and SIGKILL for the whole group: one MLflow run, and the weights of a run left in peace."""
    project.run("dvc", "repro", "judge")
    code, output = interrupt(project, signal.SIGINT, "dvc", "repro", "train")
    assert code != 0
    ((first, status),) = runs(project)
    assert status == "KILLED"

    code, output = interrupt(project, signal.SIGTERM, "dpgan", "train")
    assert code == 128 + signal.SIGTERM
    assert "stopping after a checkpoint" in output
    assert runs(project) == [(first, "KILLED")]
    assert not children(project)

    code, output = interrupt(project, signal.SIGKILL, "dvc", "repro", "train")
    assert code == -signal.SIGKILL
    assert runs(project) == [(first, "RUNNING")], "a killed process cannot say so"

    output = project.run("dpgan", "train")  # not by DVC: as if it were killed before it could record the stage
    assert "resumes from the checkpoint" in output
    assert runs(project) == [(first, "FINISHED")]
    assert not list(project.root.glob("runs/toyscapes-*")), "a finished run needs its checkpoints no more"
    manifest = json.loads((project.root / "build/train/manifest.json").read_text())
    assert manifest["restarts"] == 3
    assert manifest["precision"] in ("fp32", "bf16")
    assert manifest["commits"] == [project.run("git", "rev-parse", "HEAD").strip()]

    interrupted = [(project.root / f"build/train/{name}.safetensors").read_bytes() for name in ("last", "best")]
    assert "this run has finished" in project.run("dvc", "repro", "train"), "DVC had deleted what it did not know"
    assert runs(project) == [(first, "FINISHED")]
    assert interrupted == [(project.root / f"build/train/{name}.safetensors").read_bytes() for name in ("last", "best")]
    project.run("dvc", "repro", "--force", "--single-item", "train")
    assert interrupted == [(project.root / f"build/train/{name}.safetensors").read_bytes() for name in ("last", "best")]
    assert [status for _, status in runs(project)] == ["FINISHED", "FINISHED"]


def test_the_rest_scores_and_decides(project: Project) -> None:
    project.run("dvc", "repro")
    scores = json.loads((project.root / "build/scores.json").read_text())
    assert scores["ceiling"]["fid_lite0"] < scores["floor"]["fid_lite0"]
    full = json.loads((project.root / "build/evaluation/scores.json").read_text())
    for name in ("fid_lite0", "miou_trained"):
        record = full["intervals"]["best"][name]
        assert record["low"] <= record["value"] <= record["high"]
        assert record["value"] == full["best"][name] == scores["best"][name]
        assert (record["n"], record["seeds"]) == (8, 1)
    estimates = load_estimates(project.root / "build/evaluation/estimates.safetensors")
    assert {name: one.record() for name, one in estimates.items()} == full["intervals"]["best"]
    assert promotion(project)["version"] == 1
    sheet = Image.open(project.root / "build/evaluation/contact_sheet.png")
    assert min(sheet.size) > 200
    page = (project.root / "build/evaluation/report.html").read_text()
    for words in ("Best by the judge", "What a picture costs", "loss/G_total", "IoU by class"):
        assert words in page
    assert "| DP / DP | 44.1 | 73.6 | 66.9 | " in project.run("dpgan", "tables")
    assert "dvc exp run --temp -n toyscapes-table-1-spade" in project.run("dpgan", "tables", "--commands")


def test_what_mlflow_missed_is_sent_by_the_next_stage(project: Project) -> None:
    """The server dies in the middle of a training and is back for `promote`."""
    server = Server(project.root / "mlruns", "mlflow.db")
    project.env["MLFLOW_TRACKING_URI"] = server.uri
    try:
        server.start()
        with project.start("dvc", "repro", "--force", "--single-item", "train") as training:
            while not newest_checkpoint(project):
                assert training.poll() is None, training.stdout.read() if training.stdout else ""
                time.sleep(0.05)
            server.kill()
            output, _ = training.communicate(timeout=300)
        assert training.returncode == 0, output
        run_id, status = runs(project)[-1]
        assert status == "RUNNING"
        assert "does not answer; keeping records" in project.run("dvc", "repro", "--single-item", "evaluate")
        server.start()
        project.run("dvc", "repro")
        assert runs(project)[-1] == (run_id, "FINISHED")
        run = MlflowClient(server.uri).get_run(run_id)
        scores = json.loads((project.root / "build/scores.json").read_text())
        assert run.data.metrics["eval/best/fid_lite0"] == scores["best"]["fid_lite0"]
        assert run.data.metrics["holdout/kid_lite0"]
        artifacts = Path(unquote(urlsplit(run.info.artifact_uri).path))
        assert (artifacts / "evaluation/report.html").read_bytes() == (
            project.root / "build/evaluation/report.html"
        ).read_bytes()
        assert not list(project.root.glob("runs/spool/[0-9]*"))
    finally:
        del project.env["MLFLOW_TRACKING_URI"]
        server.kill()


def test_a_version_and_images_of_anybody_are_scored_outside_the_pipeline(project: Project, tmp_path: Path) -> None:
    output = project.run("dpgan", "evaluate", "models:/dpgan-toyscapes/1", "--against", "build/train")
    assert "cannot tell: +0.0 [+0.0, +0.0]" in output
    folder = project.root / "build/scored/toyscapes-models-dpgan-toyscapes-1"
    scored = json.loads((folder / "scores.json").read_text())
    stage = json.loads((project.root / "build/evaluation/scores.json").read_text())
    assert scored["model"] == pytest.approx(stage["best"], rel=1e-4)
    assert scored["protocol"] == stage["protocol"]
    assert "models:/dpgan-toyscapes/1" in (folder / "report.html").read_text()

    val = open_prepared(project.root / "build/prepared", "val")
    for name, photo in zip(val.ids, val.images, strict=True):
        Image.fromarray(photo).save(tmp_path / f"{Path(name).name}_fake.png")
    project.run("dpgan", "evaluate", "--images", str(tmp_path), "--out", "build/photos")
    scored = json.loads((project.root / "build/photos/scores.json").read_text())
    assert scored["model"]["fid_lite0"] == pytest.approx(0, abs=1e-3)
    assert scored["model"]["miou_trained_of_real"] == pytest.approx(100)
    assert "and not both" in project.run("dpgan", "evaluate", "build/train", "--images", str(tmp_path), code=2)


def test_on_another_dataset_than_that_of_params_yaml(project: Project, tmp_path: Path) -> None:
    """Its stages run as an experiment, and leave the project as it was."""
    card = project.root / "data/cityscapes/dataset.yaml"
    before, build = card.read_text(), (project.root / "build/prepared/meta.json").read_text()
    raw = WRITERS["cityscapes"](tmp_path, Counts(train=32, val=8))
    project.edit("data/cityscapes/dataset.yaml", "size: [256, 512]", "size: [32, 64]")
    try:
        output = project.run("dpgan", "evaluate", "build/train", "--dataset", "cityscapes", "--raw", str(raw))
    finally:
        card.write_text(before)
    assert "40 pairs, 0 left out" in output
    scored = json.loads((project.root / "build/scored/cityscapes-build-train/scores.json").read_text())
    assert scored["ceiling"]["fid_lite0"] < scored["floor"]["fid_lite0"]
    assert (project.root / "build/prepared/meta.json").read_text() == build
    assert "evaluate-cityscapes" not in project.run("dvc", "exp", "list")
    error = project.run("dpgan", "evaluate", "--images", str(tmp_path), "--dataset", "camvid", code=2)
    assert "data/camvid/README.md says what to get" in error


def test_a_second_run_is_cached(project: Project) -> None:
    before = promotion(project)
    output = project.run("dvc", "repro")
    assert "Running stage" not in output
    assert promotion(project) == before
    assert "dpgan-toyscapes" in project.run("dpgan", "summary")


def test_dvc_says_sensible_things(project: Project) -> None:
    assert "fid_lite0" in project.run("dvc", "metrics", "show")
    dag = project.run("dvc", "dag")
    assert all(name in dag for name in ("render", "index", "validate", "prepare", "judge", "train", "promote"))
    project.edit("params.yaml", "perceptual: 1.0", "perceptual: 2.0")
    assert "train.losses.perceptual" in project.run("dvc", "params", "diff")
    assert "train" in project.run("dvc", "status")
    project.edit("params.yaml", "perceptual: 2.0", "perceptual: 1.0")


def test_the_run_is_described_in_mlflow(project: Project) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    manifest = json.loads((project.root / "build/train/manifest.json").read_text())
    run = client.get_run(manifest["run_id"])
    assert {"git.commit", "git.dirty", "dvc.lock_sha256", "dataset_hash", "data_hash", "identity"} <= set(run.data.tags)
    assert run.data.tags["git.dirty"] == "false"
    assert run.data.tags["dataset_hash"] == manifest["facts"]["dataset_hash"]
    assert run.data.params["train.losses.perceptual"] == "1.0"
    assert {"loss/G_total", "throughput/images_per_s", "holdout/kid_lite0", "eval/best/fid_lite0"} <= set(
        run.data.metrics
    )
    assert [a.path for a in client.list_artifacts(run.info.run_id, "evaluation")]
    assert {"data/report.html", "data/data_docs"} <= {a.path for a in client.list_artifacts(run.info.run_id, "data")}
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 2


def test_the_champion_paints_without_this_package(project: Project, tmp_path: Path) -> None:
    """Crowned by hand: so tiny a network need not pass the gate."""
    import mlflow

    uri = f"sqlite:///{project.root}/mlruns/mlflow.db"
    client = mlflow.MlflowClient(uri)
    client.set_registered_model_alias("dpgan-toyscapes", "champion", "1")
    env = {k: v for k, v in project.env.items() if k != "PYTHONPATH"} | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(
        [sys.executable, "-c", HANDOFF], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert "painted" in done.stdout, done.stderr


def test_a_broken_contract_stops_the_pipeline(project: Project) -> None:
    labels = sorted((project.root / "data/toyscapes/raw/labels/train").iterdir())
    content = labels[0].read_bytes()
    labels[0].unlink()
    Image.fromarray(np.full((32, 64), 200, np.uint8)).save(labels[0])
    try:
        project.run("dpgan", "index")
        error = project.run("dpgan", "validate", code=2)
    finally:
        labels[0].write_bytes(content)
        project.run("dpgan", "index")
    assert labels[0].name in error
    assert "200" in error
    assert "Traceback" not in error


def test_the_flow_runs_the_same_stages(project: Project) -> None:
    """On Prefect's embedded server: every stage a task, the scores and the picture as artifacts, the run in git."""
    output = project.run(sys.executable, "-m", "flows.train_dpgan")
    assert "Completed" in output

    with sqlite3.connect(project.root / ".prefect/prefect.db") as database:
        artifacts = {key for (key,) in database.execute("select key from artifact where key is not null")}
        tasks = {name for (name,) in database.execute("select name from task_run")}
    assert {"data-report", "scores", "contact-sheet", "verdict"} <= artifacts
    assert {"version", "validate", "prepare", "judge", "train", "evaluate", "promote"} <= tasks
    kept = project.run("git", "show", "runs/toyscapes:build/scores.json")
    assert json.loads(kept) == json.loads((project.root / "build/scores.json").read_text())

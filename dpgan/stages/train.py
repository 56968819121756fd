"""The training, in an MLflow run that outlives its interruptions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpgan import identities
from dpgan.checks import held_out_note
from dpgan.config import need, train_settings
from dpgan.errors import UserError
from dpgan.files import new_folder, sole_holder, write_json
from dpgan.progress import Progress, record
from dpgan.settings import load_yaml
from dpgan.stages.build import PREPARED, TRAIN_SCORES, TRAINED, VALIDATION, setup, splits

if TYPE_CHECKING:
    from dpgan.registry.spool import Tracker
    from dpgan.training.build import Job

RECORDED = "recorded"  # in a run's folder: what DVC had recorded of the stage when the run started


def train() -> None:
    """Train DP-GAN on N workers; an interrupted run resumes from its last checkpoint, in the same MLflow run."""
    from dpgan.data.prepare import hashes
    from dpgan.data.staging import publish
    from dpgan.models.perceptual import check_vgg19
    from dpgan.registry.provenance import provenance
    from dpgan.training.build import Job
    from dpgan.training.launch import resources, start_ray

    params, card = setup()
    settings = train_settings(params, card.preset)
    if params.train is None:
        raise UserError("params.yaml: train is null, so that nothing is trained; take the line out, or give it keys")
    if note := held_out_note(settings, len(splits(params, card)[0].ids)):
        print(f"train     {note}", flush=True)
    if settings.losses.perceptual and settings.perceptual_network == "vgg19":
        check_vgg19(params.run.vgg19)
    data = hashes(PREPARED)
    trains = identities.trains(settings.model_dump(mode="json"), params.seed, data["data_hash"], card.digest)
    who = identities.run(trains)
    root = Path.cwd()
    folder = root / "runs" / f"{card.name}-{who}"
    with sole_holder(folder.with_name(f".{folder.name}.lock"), f"train: a training of the same settings ({who[:8]})"):
        start_ray(params.run)
        resources(params.run)  # what is missing comes up before a run is opened
        facts = {"identity": who, "code": identities.training_code(), **data, **provenance(root)}
        fork = root / settings.fork if settings.fork else None
        published = publish(root) if params.run.data_cache else None
        _train(
            root,
            Job(card, settings, params.run, params.seed, trains, PREPARED.absolute(), folder, facts, fork, published),
        )


def _train(root: Path, job: Job) -> None:
    """The job from its start to the stage's outs. Its folder is put away only when they are whole."""
    from dpgan.training.launch import launch
    from dpgan.training.start import check_disk

    folder, recorded = job.folder, _recorded(root / "dvc.lock", str(job.facts["code"]))
    take_back(folder, recorded)
    done = (folder / "result.json").exists()
    if done:
        print(f"train     this run has finished: {TRAINED} is made from it again, without training", flush=True)
    else:
        _tell_start(job)
        check_disk(job)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORDED).write_text(recorded)
    tracker = _open_tracker(root, job)
    print(f"train     preset {job.settings.preset}, {job.run.workers} workers, MLflow run {tracker.run_id}", flush=True)
    with _run_status(tracker.finish):
        if not done:
            launch(job, tracker, Progress("train"))
    _write_outs(job, tracker.run_id)
    put_away(folder, keep_checkpoints=job.run.keep_every is not None)


def _open_tracker(root: Path, job: Job) -> Tracker:
    """The MLflow run of the job: a new one, or that of its earlier starts."""
    from dpgan.registry.spool import Tracker
    from dpgan.registry.tracking import open_run

    kept = job.folder / "mlflow_run"
    run_id = open_run(
        root,
        job.card.name,
        name=f"{job.settings.preset}-{job.facts['identity'][:8]}",
        params={
            "dataset": job.card.name,
            "seed": job.seed,
            "train": job.settings.model_dump(),
            "run": job.run.model_dump(),
        },
        tags={**job.facts, "mlflow.source.name": "dpgan train", "mlflow.source.git.commit": job.facts["git.commit"]},
        run_id=kept.read_text() if kept.exists() else None,
    )
    kept.write_text(run_id)
    tracker = Tracker.of(root, run_id)
    tracker.artifact(need(VALIDATION, "validate"), "data")
    record("run", run_id=run_id)
    return tracker


def _write_outs(job: Job, run_id: str) -> None:
    """build/train and build/train.json, from what the loop left."""
    from dpgan.registry.provenance import versions
    from dpgan.training.candidates import candidate_path

    result = json.loads((job.folder / "result.json").read_text())
    with new_folder(TRAINED) as out:
        for name, images in {"last": result["images"], "best": result["best"]["images"]}.items():
            shutil.copy2(candidate_path(job.folder, int(images)), out / f"{name}.safetensors")
        write_json(
            out / "manifest.json",
            {
                "run_id": run_id,
                "settings": job.settings.model_dump(),
                "seed": job.seed,
                "facts": dict(job.facts),
                "versions": versions(),
                **result,
            },
        )
    best = {f"best_{key}": value for key, value in result["best"].items()}
    metrics = ("images", "images_per_s", "seconds", "restarts")
    write_json(TRAIN_SCORES, {**{key: result[key] for key in metrics}, **best})


def _recorded(lock: Path, code: str) -> str:
    """What DVC has recorded of this stage, and the code that would train: changes as soon as it has recorded a run."""
    stages = load_yaml(lock)["stages"] if lock.exists() else {}
    return json.dumps({"dvc": stages.get("train"), "code": code}, sort_keys=True)


def take_back(folder: Path, recorded: str) -> None:
    """Put a finished run back in its place if DVC has not recorded it: it was killed before it could.

    DVC deletes the stage's outs before it runs the stage again; without this the training would start anew.
    """
    finished = _finished(folder)
    note = finished / RECORDED
    if not folder.exists() and note.exists() and note.read_text() == recorded:
        finished.rename(folder)


def put_away(folder: Path, keep_checkpoints: bool) -> None:
    """Move a finished run to runs/finished: its candidates and its result stay, its checkpoints if asked for."""
    finished = _finished(folder)
    finished.parent.mkdir(exist_ok=True)
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)  # at once: whatever is killed after this, the run is whole there
    if not keep_checkpoints:
        shutil.rmtree(finished / "checkpoints", ignore_errors=True)
    shutil.rmtree(finished / "ray", ignore_errors=True)


def _finished(folder: Path) -> Path:
    return folder.parent / "finished" / folder.name


def _tell_start(job: Job) -> None:
    """Check what the run starts from, before anything is opened; name interrupted runs that it does not resume."""
    from dpgan.training.checkpoint import Checkpoints, differences
    from dpgan.training.start import decide_start

    if decide_start(job) is not None:
        return
    for other in sorted(job.folder.parent.glob(f"{job.card.name}-*")):
        found = Checkpoints(other / "checkpoints", {}).newest(verify=False)
        if found is not None:
            changed = "; ".join(differences(found.trains, job.trains))
            name = other.relative_to(Path.cwd())
            print(f"train     {name} was interrupted and stays as it is: this run differs from it ({changed}); "
                  f"`train: {{fork: {name}}}` starts from it")  # fmt: skip


@contextmanager
def _run_status(finish: Callable[[str], None]) -> Iterator[None]:
    """The MLflow run ends as it really ended."""
    try:
        yield
    except KeyboardInterrupt:
        finish("KILLED")
        raise
    except BaseException:
        finish("FAILED")
        raise
    finish("FINISHED")

"""The training, in an MLflow run that outlives its interruptions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpgan import identities
from dpgan.checks import check_fits
from dpgan.config import need, train_settings
from dpgan.files import new_folder, write_json
from dpgan.progress import Progress, record
from dpgan.stages.build import PREPARED, TRAIN_SCORES, TRAINED, VALIDATION, setup, splits

if TYPE_CHECKING:
    from dpgan.training.build import Job


def train() -> None:
    """Train DP-GAN on N workers; an interrupted run resumes from its last checkpoint, in the same MLflow run."""
    from dpgan.data.prepare import hashes
    from dpgan.data.staging import publish
    from dpgan.models.perceptual import check_vgg19
    from dpgan.registry.provenance import provenance, versions
    from dpgan.registry.spool import Tracker
    from dpgan.registry.tracking import open_run
    from dpgan.training.build import Job
    from dpgan.training.candidates import candidate_path
    from dpgan.training.launch import launch, resources, start_ray

    params, card = setup()
    settings = train_settings(params, card.preset)
    check_fits(settings, params.run, card.size, len(splits()[0].ids))
    if settings.losses.perceptual and settings.perceptual_network == "vgg19":
        check_vgg19(params.run.vgg19)
    start_ray(params.run)
    resources(params.run)  # what is missing comes up before a run is opened
    data = hashes(PREPARED)
    trains = identities.trains(settings.model_dump(mode="json"), params.seed, data["data_hash"], card.digest)
    who = identities.run(trains)
    root = Path.cwd()
    folder = root / "runs" / f"{card.name}-{who}"
    facts = {"identity": who, **data, **provenance(root)}
    fork = root / settings.fork if settings.fork else None
    published = publish(root) if params.run.data_cache else None
    job = Job(card, settings, params.run, params.seed, trains, PREPARED.absolute(), folder, facts, fork, published)
    _tell_start(job)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "mlflow_run"
    run_id = open_run(
        root,
        card.name,
        name=f"{settings.preset}-{who[:8]}",
        params={
            "dataset": card.name,
            "seed": params.seed,
            "train": settings.model_dump(),
            "run": params.run.model_dump(),
        },
        tags={**facts, "mlflow.source.name": "dpgan train", "mlflow.source.git.commit": facts["git.commit"]},
        run_id=kept.read_text() if kept.exists() else None,
    )
    kept.write_text(run_id)
    tracker = Tracker.of(root, run_id)
    tracker.artifact(need(VALIDATION, "validate"), "data")
    record("run", run_id=run_id)
    print(f"train     preset {settings.preset}, {params.run.workers} workers, MLflow run {run_id}", flush=True)
    with _run_status(tracker.finish):
        launch(job, tracker, Progress("train"))
    result = json.loads((folder / "result.json").read_text())
    with new_folder(TRAINED) as out:
        for name, images in {"last": result["images"], "best": result["best"]["images"]}.items():
            shutil.copy2(candidate_path(folder, int(images)), out / f"{name}.safetensors")
        write_json(
            out / "manifest.json",
            {
                "run_id": run_id,
                "settings": settings.model_dump(),
                "seed": params.seed,
                "facts": facts,
                "versions": versions(),
                **result,
            },
        )
    best = {f"best_{key}": value for key, value in result["best"].items()}
    metrics = ("images", "images_per_s", "seconds", "restarts")
    write_json(TRAIN_SCORES, {**{key: result[key] for key in metrics}, **best})
    if params.run.keep_every:
        with new_folder(folder.parent / "finished" / folder.name) as finished:  # can be forked, is not resumed
            (folder / "checkpoints").rename(finished / "checkpoints")
    shutil.rmtree(folder)


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

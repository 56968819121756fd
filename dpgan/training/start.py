"""Where a training starts: at its newest checkpoint, at that of the run to fork, or from nothing; or why it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open

from dpgan.errors import UserError
from dpgan.models.discriminators import build_discriminator
from dpgan.models.generators import build_generator
from dpgan.training.build import Job
from dpgan.training.checkpoint import Checkpoint, differences, starting_point


def decide_start(job: Job) -> Checkpoint | None:
    """The checkpoint that the job starts from, its files' hashes checked; None: from nothing.

    UserError if the job must not, or cannot, train on from there: what is trained, the code or the layers have
    changed, or a run is to be forked that has seen all images already.
    """
    start = starting_point(job.checkpoints(), job.fork)
    if start is None:
        return None
    if is_own(job, start):
        check_code(job, start)
    check_layers(job, start)
    if not is_own(job, start) and start.images >= job.settings.images:
        raise UserError(
            f"params.yaml: train.fork: {start.path} has seen {start.images} images, train.images is "
            f"{job.settings.images}: nothing is left to train; set train.images above {start.images}"
        )
    return start


def is_own(job: Job, start: Checkpoint) -> bool:
    """Whether the job resumes there; else it forks another run."""
    return start.path.parent == job.checkpoints().folder


def check_code(job: Job, start: Checkpoint) -> None:
    """UserError if other code trains than the checkpoint's, and `run.accept_code` does not name it."""
    before, now = start.facts.get("code"), job.facts.get("code")
    accepted = job.run.accept_code is not None and str(now).startswith(job.run.accept_code)
    if before != now and not accepted:
        raise UserError(
            f"{start.path}: networks, losses or the training step have changed since then: code {before} of commit "
            f"{_commit(start.facts)} -> {now} of commit {_commit(job.facts)}. Check the old commit out to finish the "
            f"run as it began; or set `run: {{accept_code: {now}}}` in params.yaml to train on under the changed code; "
            f"or move {job.folder} away to start anew"
        )


def _commit(facts: Mapping[str, Any]) -> str:
    changed = " with changes that are not committed" if facts.get("git.dirty") == "true" else ""
    return f"{facts.get('git.commit', 'unknown')}{changed}"


def changes_since(job: Job, start: Checkpoint) -> list[str]:
    """What else is no longer as it was at the checkpoint, a line each: the commit, the libraries, the image."""
    names = ("code", "git.commit", "requirements.lock_sha256", "image.digest")
    before, now = ({name: facts.get(name) for name in names} for facts in (start.facts, job.facts))
    return differences(before, now)


def check_disk(job: Job) -> None:
    """UserError if the disk of the job's folder has no room for what the job will keep there and for its outs."""
    with torch.device("meta"):
        generator = build_generator(**job.settings.generator_arguments(job.card.num_classes))
        discriminator = build_discriminator(**job.settings.discriminator_arguments(job.card.num_classes))
    one, other = (sum(v.nbytes for v in m.state_dict().values()) for m in (generator, discriminator))
    checkpoint = 4 * one + 3 * other  # the networks, the average, and two moments of each weight
    run, lasting = job.run, job.settings.images // (job.run.keep_every or job.settings.images + 1)
    kept = run.keep_last + 2 + lasting  # the best one, and the one that is being written
    candidates = 3 + 2 + lasting  # last, best and the next one; the two of build/train; those that checkpoints name
    needed = kept * checkpoint + candidates * one
    job.folder.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in job.folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(job.folder).free
    if needed > free + there:
        raise UserError(
            f"{job.folder}: the training keeps up to {kept} checkpoints of {checkpoint / 1e9:.2f} GB and candidates, "
            f"{needed / 1e9:.2f} GB in all; {(free + there) / 1e9:.2f} GB are free: make room, or lower run.keep_last "
            "or raise run.keep_every"
        )


def check_layers(job: Job, checkpoint: Checkpoint) -> None:
    """UserError if the networks of a checkpoint have other layers than the job's."""
    with torch.device("meta"):
        generator = build_generator(**job.settings.generator_arguments(job.card.num_classes))
        discriminator = build_discriminator(**job.settings.discriminator_arguments(job.card.num_classes))
    remedy = (
        f"the code that builds it has changed: train on under the code of then, or move {job.folder} away to start anew"
        if is_own(job, checkpoint)
        else "fork it with the networks' settings and the classes that it was trained with"
    )
    for name, module in {"generator": generator, "discriminator": discriminator, "average": generator}.items():
        expected = {key: list(value.shape) for key, value in module.state_dict().items()}
        with safe_open(checkpoint.file(name), "pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        if changed := differences(found, expected):
            where = "" if is_own(job, checkpoint) else "params.yaml: train.fork: "
            raise UserError(
                f"{where}the {name} of {checkpoint.path} has other layers than this run's (for one, {changed[0]}): "
                f"{remedy}"
            )

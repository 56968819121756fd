"""Where a training starts: at its newest checkpoint, at that of the run to fork, or from nothing; or why it cannot."""

from __future__ import annotations

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

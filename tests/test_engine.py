"""Where networks compute: decided by what this process and the cluster have."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from dpgan.cluster import FEW
from dpgan.errors import UserError
from dpgan.evaluation.engine import CPU, Engine
from dpgan.hardware import Place, choose_place

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "gpu_here", "cluster_gpus", "expected"),
    [
        ("auto", False, None, CPU),
        ("auto", True, None, Place(GPU, here=True)),
        ("cuda", True, None, Place(GPU, here=True)),
        ("cpu", True, 8, CPU),
        ("auto", False, 0, CPU),
        ("auto", False, 8, Place(GPU, here=False)),  # the driver of a cluster
        ("cuda", False, 8, Place(GPU, here=False)),
        ("cuda", True, 8, Place(GPU, here=True)),
        ("auto", True, 0, CPU),  # as training: the cluster decides
    ],
)
def test_the_place_is_where_the_gpus_are(
    setting: str, gpu_here: bool, cluster_gpus: float | None, expected: Place
) -> None:
    assert choose_place(setting, gpu_here, cluster_gpus) == expected


@pytest.mark.parametrize(("cluster_gpus", "where"), [(None, "torch finds no CUDA device here"), (0, "no node of the")])
def test_no_gpu_anywhere_is_one_sentence(cluster_gpus: float | None, where: str) -> None:
    with pytest.raises(UserError, match=rf"run\.device is cuda, and {where}.*; set it to auto or cpu"):
        choose_place("cuda", False, cluster_gpus)


class Where:
    """A function without a network that answers where it was moved, how often, and what Ray gave its process."""

    def __init__(self) -> None:
        self.moves: list[str] = []

    def to(self, device: torch.device) -> Where:
        self.moves.append(device.type)
        return self

    def __call__(self, job: int, /) -> tuple[list[str], int, str]:
        return self.moves, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_few_jobs_stay_in_this_process() -> None:
    with closing(Engine()) as engine:
        answers = dict(engine.each(Where(), range(FEW), memory=0))
    assert list(answers) == list(range(FEW))
    assert {pid for _, pid, _ in answers.values()} == {os.getpid()}
    assert answers[0][0] == ["cpu"], "moved once"


def test_a_driver_without_gpu_uses_the_clusters(tmp_path: Path) -> None:
    """A Ray whose node says that it has a GPU: even one job goes to the worker that Ray gave it to."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, __file__]
    found = subprocess.run(
        command, check=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.splitlines()[-1] == "as it should be"


if __name__ == "__main__":
    import ray

    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    with closing(Engine(Place(GPU, here=False))) as remote:
        asked = Where()
        (_, first), (_, second) = remote.each(asked, [0, 1], memory=2**20)
        third = remote.once(asked, 2, memory=2**20)
        turns = list(remote.in_turn(Where(), [0, 1], memory=2**21))
    assert asked.moves == [], "nothing moves here"
    for moves, pid, visible in (first, second, third, *turns):
        assert (moves, visible) == (["cuda"], "0"), (moves, visible)
        assert pid != os.getpid()
    assert first[1] == second[1] == third[1], "one worker per GPU, which stays"
    assert turns[0][1] == turns[1][1] != first[1]
    print("as it should be")

"""Workers that do not agree are refused on all of them, with a sentence; real processes over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_job import CPU

from dpgan.errors import UserError
from dpgan.training import agreement
from dpgan.training.agreement import agreed_precision, check_same, disagreements, same_checkpoint
from dpgan.training.checkpoint import Checkpoint, Checkpoints, DamagedError, open_checkpoint, starting_point
from dpgan.training.meter import Meter
from dpgan.training.strategy import AgreedError, broadcast_tensors, on_rank_0, rank

WORKERS = 2


class Scene(NamedTuple):
    """What every worker does in a folder of its own, with what it may patch; the answer is what it comes to."""

    act: Callable[[Path, pytest.MonkeyPatch], str]
    checkpoints: tuple[int, ...] = ()  # that lie in the folder, by their images
    backend: str = "gloo"


def _process(number: int, scenes: dict[str, Scene], folder: Path) -> None:
    torch.set_num_threads(1)
    for name, scene in scenes.items():
        place = folder / name
        dist.init_process_group(
            scene.backend,
            init_method=f"file://{place}/meeting",
            rank=number,
            world_size=WORKERS,
            timeout=timedelta(seconds=60),
        )
        with pytest.MonkeyPatch.context() as patch:
            try:
                said = scene.act(place, patch)
            except AgreedError as error:
                said = f"refused: {error}"
        (place / f"said-{number}").write_text(said)
        dist.destroy_process_group()


def saved(folder: Path, *images: int) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", {})
    for number in images:
        checkpoints.save(number, {"m": {"x": torch.full((3,), float(number))}}, None, {})
    checkpoints.wait()
    return checkpoints


def start(
    place: Path, patch: pytest.MonkeyPatch, look: Callable[[Path, bool], Checkpoint] | None = None, wait_s: float = 0.0
) -> str:
    """Rank 0 decides; worker 1 sees the folder as `look` does."""
    decided = on_rank_0(lambda: starting_point(Checkpoints(place / "checkpoints", {}), None))
    if rank() == 1 and look is not None:
        patch.setattr(agreement, "open_checkpoint", lambda path, verify=True: look(path, verify))
    found = same_checkpoint(decided, wait_s)
    return f"starts at {found.images}" if found else "starts from nothing"


def without_it(path: Path, verify: bool) -> Checkpoint:
    raise DamagedError("manifest.json is missing or cut off")


def another_one(path: Path, verify: bool) -> Checkpoint:
    """Whole, and of as many images: only the hash knows."""
    return replace(open_checkpoint(path, verify), digest="0" * 64)


def late(place: Path, patch: pytest.MonkeyPatch) -> str:
    looks = iter([False, False])
    return start(place, patch, lambda p, v: open_checkpoint(p, v) if next(looks, True) else without_it(p, v), 30.0)


def refusal(place: Path, patch: pytest.MonkeyPatch) -> str:
    def refuse() -> None:
        raise UserError("the checkpoint is of a training of something else")

    on_rank_0(refuse)
    return "trains"


def full_disk(place: Path, patch: pytest.MonkeyPatch) -> str:
    on_rank_0(lambda: (place / "nowhere" / "result.json").write_text("{}"))
    return "trains"


def other_data(place: Path, patch: pytest.MonkeyPatch) -> str:
    check_same({"torch": torch.__version__}, {"torch": torch.__version__, "data": "old" if rank() else "new"})
    return "trains"


def precision(recorded: str | None, place: Path, patch: pytest.MonkeyPatch) -> str:
    """One of the two has no bf16."""
    patch.setattr(agreement, "native_bf16", lambda device: rank() == 0)
    return " ".join(agreed_precision(setting, recorded, CPU) for setting in ("auto", "bf16"))


def calibrations(place: Path, patch: pytest.MonkeyPatch) -> str:
    module = torch.nn.BatchNorm2d(2)
    assert module.running_var is not None
    module.running_var.fill_(1.0 + rank())
    broadcast_tensors(module)
    return str(module.running_var.tolist())


def skipped_window(place: Path, patch: pytest.MonkeyPatch) -> str:
    """Every step since the last reading was skipped."""
    meter = Meter()
    meter.data_arrived()
    meter.step_done({}, 4)
    return " ".join(sorted(meter.read()))


SCENES = {
    "rank 0 decides": Scene(start, (12, 16)),
    "nothing there": Scene(start),
    "without it": Scene(partial(start, look=without_it, wait_s=0.1), (16,)),
    "another one": Scene(partial(start, look=another_one), (16,)),
    "late": Scene(late, (16,)),
    "refusal": Scene(refusal),
    "full disk": Scene(full_disk),
    "other data": Scene(other_data),
    "precision": Scene(partial(precision, None)),
    "recorded precision": Scene(partial(precision, "bf16")),
    "calibrations": Scene(calibrations),
    # A backend for CUDA tensors alone, as NCCL is one: a tensor on the CPU has nobody to send it.
    "skipped window": Scene(skipped_window, backend="cuda:gloo"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each of two workers comes to in every scene; an AgreedError counts, anything else fails."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, scene in SCENES.items():
        (folder / name).mkdir()
        saved(folder / name, *scene.checkpoints)
    mp.spawn(_process, args=(SCENES, folder), nprocs=WORKERS)
    return {name: [(folder / name / f"said-{number}").read_text() for number in range(WORKERS)] for name in SCENES}


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("rank 0 decides", "starts at 16"),  # worker 1 does not look for the newest itself
        ("nothing there", "starts from nothing"),
        ("late", "starts at 16"),
        ("precision", "fp32 bf16"),
        ("recorded precision", "bf16 bf16"),
        ("calibrations", "[1.0, 1.0]"),
        ("skipped window", "throughput/data_wait throughput/images_per_s"),
    ],
)
def test_all_come_to_the_same(said: dict[str, list[str]], scene: str, words: str) -> None:
    assert said[scene] == [words, words]


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("without it", "images_000000016: training resumes from this checkpoint, and not every worker can: for worker 1"
         f" on node {os.uname().nodename} it is damaged (manifest.json is missing or cut off). The run's folder must"),
        ("another one", "it is another one than for worker 0. The run's folder must be a path that all nodes share"),
        ("refusal", "the checkpoint is of a training of something else"),
        ("full disk", "result.json': what was saved before is whole"),
        ("other data", f"worker 1 on node {os.uname().nodename} has data old, not new. Give all nodes the same image"),
    ],
)  # fmt: skip
def test_all_are_refused_with_one_sentence(said: dict[str, list[str]], scene: str, words: str) -> None:
    first, second = said[scene]
    assert first == second
    assert first.startswith("refused: ")
    assert words in first


def test_facts_are_checked_against_what_the_driver_saw() -> None:
    found = {"code": "b", "data": "x"}
    assert disagreements({"code": "a"}, [("here", found), ("there", found)]) == [
        "worker 0 on node here has code b, not a",
        "worker 1 on node there has code b, not a",
    ]
    assert disagreements({}, [("here", found), ("there", found)]) == []

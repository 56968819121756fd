"""Training as a whole, on a real Ray with gloo: workers change nothing, and a lost worker costs nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_pairs import make_card, make_raw
from safetensors.torch import load_file
from tiny_job import CPU, job

from dpgan.config import RunSettings
from dpgan.data.index import scan
from dpgan.data.prepare import open_prepared, prepare
from dpgan.errors import UserError
from dpgan.training.build import build
from dpgan.training.candidates import candidate_path
from dpgan.training.guard import NonFiniteError
from dpgan.training.launch import launch, resources
from dpgan.training.loop import PATIENCE, train
from dpgan.training.start import decide_start
from dpgan.training.step import TrainingStep


@dataclass
class Records:
    """A tracker that writes what it is told to a file; it runs in a worker's process."""

    path: Path
    kill_at: int | None = None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        crash = self.path.with_suffix(".crashed")
        if self.kill_at == step and not crash.exists():
            crash.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        assert image.dtype == np.uint8
        assert image.ndim == 3

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker, in this process, uninterrupted."""
    folder = tmp_path_factory.mktemp("alone")
    train(job(tiny, folder, workers=1), CPU, Records(folder / "log"), lambda *_: None)
    return folder


def test_a_run_leaves_candidates_and_metrics(alone: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    assert result["images"] == 24
    assert result["best"]["images"] in (12, 24)
    logged = Records(alone / "log").read()
    losses = [row for row in logged if "loss/G_total" in row]
    assert [row["step"] for row in losses] == [4, 8, 12, 16, 20, 24]
    assert {"throughput/images_per_s", "throughput/data_wait", "loss/D_labelmix"} <= set(losses[0])
    assert [row["step"] for row in logged if "holdout/kid_lite0" in row] == [12, 24]


def weights(folder: Path, name: str) -> Path:
    """The file of the candidate `last` or `best`, as the stage finds it."""
    result = json.loads((folder / "result.json").read_text())
    return candidate_path(folder, {"last": result["images"], "best": result["best"]["images"]}[name])


def close(a: Path, b: Path, name: str, tolerance: float) -> None:
    ours, theirs = (load_file(weights(folder, name)) for folder in (a, b))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_what_one_trains(tiny: Path, alone: Path, tmp_path: Path) -> None:
    log = Records(tmp_path / "log")
    reports: list[tuple[int, int, str]] = []
    launch(job(tiny, tmp_path, workers=2), log, lambda *facts: reports.append(facts))
    single = [row for row in Records(alone / "log").read() if "loss/G_total" in row]
    double = [row for row in log.read() if "loss/G_total" in row]
    for one, two in zip(single, double, strict=True):
        for name in (n for n in one if n.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), (one["step"], name)
    assert reports[-1][:2] == (24, 24)


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_restarts_from_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """The final weights are those of the uninterrupted run, bit for bit."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    launch(job(tiny, calm, workers=2), Records(tmp_path / "calm.log"), lambda *_: None)
    log = Records(tmp_path / "killed.log", kill_at=16)
    launch(job(tiny, killed, workers=2), log, lambda *_: None)
    steps = [row["step"] for row in log.read() if "loss/G_total" in row]
    assert steps == [4, 8, 12, 16, 16, 20, 24] or steps == [4, 8, 12, 16, 12, 16, 20, 24]
    for name in ("last", "best"):
        close(calm, killed, name, tolerance=0)


@pytest.mark.parametrize("at", [4, 16])
def test_a_broken_off_run_goes_on_where_it_was(tiny: Path, alone: Path, tmp_path: Path, at: int) -> None:
    """Broken off before the first checkpoint too: then it starts anew, and comes to the same."""

    class Break(Records):
        def metrics(self, values: Mapping[str, float], step: int) -> None:
            super().metrics(values, step)
            if step == at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(tiny, tmp_path, workers=1), CPU, Break(tmp_path / "log"), lambda *_: None)
    train(job(tiny, tmp_path, workers=1), CPU, Records(tmp_path / "log"), lambda *_: None)
    close(alone, tmp_path, "last", tolerance=0)
    close(alone, tmp_path, "best", tolerance=0)
    assert json.loads((tmp_path / "result.json").read_text())["restarts"] == 1


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(tiny: Path, alone: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])  # after the third step, where no checkpoint is due
    stopped = job(tiny, tmp_path, workers=1)
    stopped = replace(stopped, run=stopped.run.model_copy(update={"checkpoint_images": 1000}))
    train(stopped, CPU, Records(tmp_path / "log"), lambda *_: None, stop=lambda: next(asked))
    assert not (tmp_path / "result.json").exists()
    found = stopped.checkpoints().newest()
    assert found is not None
    assert found.images == 12
    train(stopped, CPU, Records(tmp_path / "log"), lambda *_: None)
    close(alone, tmp_path, "last", tolerance=0)


@pytest.mark.usefixtures("ray_session")
def test_a_run_goes_on_with_another_number_of_workers(tiny: Path, alone: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    train(job(tiny, tmp_path, workers=1), CPU, Records(tmp_path / "log"), lambda *_: None, stop=lambda: next(asked))
    launch(job(tiny, tmp_path, workers=2), Records(tmp_path / "log"), lambda *_: None)
    close(alone, tmp_path, "last", tolerance=2e-3)
    logged = [row for row in Records(tmp_path / "log").read() if "loss/G_total" in row]
    expected = [row for row in Records(alone / "log").read() if "loss/G_total" in row]
    assert [row["step"] for row in logged] == [4, 8, 12, 16, 20, 24]
    for ours, whole in zip(logged, expected, strict=True):
        assert ours["loss/D_total"] == pytest.approx(whole["loss/D_total"], rel=2e-3)


def test_a_changed_setting_is_refused_and_can_be_forked(tiny: Path, tmp_path: Path) -> None:
    asked = iter([False, True])
    first = job(tiny, tmp_path, workers=1)
    train(first, CPU, Records(tmp_path / "log"), lambda *_: None, stop=lambda: next(asked))
    with pytest.raises(UserError, match=r"settings\.ema: 0\.9999 -> 0\.5"):
        train(job(tiny, tmp_path, workers=1, ema=0.5), CPU, Records(tmp_path / "log"), lambda *_: None)
    forked, wider = (
        replace(job(tiny, tmp_path / "fork", workers=1, **changes), fork=tmp_path)
        for changes in ({"ema": 0.5}, {"generator_width": 4})
    )
    with pytest.raises(UserError, match=r"train\.fork: the generator of .* has other layers than this run's \(for one"):
        decide_start(wider)
    start = decide_start(forked)
    assert start is not None
    log = Records(tmp_path / "fork" / "log")
    train(forked, CPU, log, lambda *_: None)
    assert [row["step"] for row in log.read() if "loss/G_total" in row] == [12, 16, 20, 24]


@pytest.mark.usefixtures("ray_session")
def test_more_workers_or_nodes_than_ray_has_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.workers 64 need 64 CPUs, Ray has"):
        launch(job(tiny, tmp_path, workers=64), Records(tmp_path / "log"), lambda *_: None)
    apart = RunSettings(workers=2, placement="STRICT_SPREAD", device="cpu")
    with pytest.raises(UserError, match=r"run\.workers 2 on a node of its own, Ray has 1 that can take one"):
        resources(apart)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Prepared arrays of two training pairs."""
    card, raw = make_card(), make_raw(tmp_path / "raw", train=2)
    prepare(scan(card, raw, workers=1), card, raw, tmp_path / "prepared", workers=1)
    return tmp_path / "prepared"


def test_two_pairs_can_be_trained_on(few: Path, tmp_path: Path) -> None:
    """One is held out: no distribution to compare with, so the newest candidate is the best."""
    work = replace(job(few, tmp_path / "run", workers=1, holdout=64), card=make_card())
    log = Records(tmp_path / "log")
    train(work, CPU, log, lambda *_: None)
    assert weights(work.folder, "best") == weights(work.folder, "last")
    assert not any("holdout/kid_lite0" in row for row in log.read())
    assert all(np.isfinite(value) for row in log.read() for value in row.values())


def test_both_networks_are_compiled_where_a_setting_asks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling itself takes minutes: that its losses are those of eager mode is in docs/performance.md."""
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    task, data = job(tiny, tmp_path, 1), open_prepared(tiny, "train")
    for asked in (False, True):
        build(replace(task, run=task.run.model_copy(update={"compile": asked})), CPU, data, np.arange(8))
    assert compiled == ["DPGenerator", "DPDiscriminator"]


@pytest.mark.parametrize("losses", [{"patch": 0}, {"feature": 0, "labelmix": 0}, {"perceptual": 1.0, "l1": 1.0}])
def test_any_loss_can_be_left_out_or_added(tiny: Path, tmp_path: Path, losses: dict[str, float]) -> None:
    log = Records(tmp_path / "log")
    train(job(tiny, tmp_path, workers=1, images=4, losses=losses), CPU, log, lambda *_: None)
    row = next(row for row in log.read() if "loss/G_total" in row)
    for name, weight in losses.items():
        assert (f"loss/G_{name}" in row or f"loss/D_{name}" in row) == bool(weight)
    assert np.isfinite(row["loss/G_total"])


def poison(at: int, times: int) -> Callable[..., Any]:
    """`TrainingStep.__call__` that puts a NaN into a weight ahead of its `at`-th call, `times` times."""
    original, calls, left = TrainingStep.__call__, [0], [times]

    def step(self: TrainingStep, *arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] >= at and left[0]:
            left[0] -= 1
            calls[0] = 0
            with torch.no_grad():
                next(self.generator.parameters()).mul_(float("nan"))
        return original(self, *arguments, **keywords)

    return step


def test_a_passing_fault_is_mended_by_going_back_once(
    tiny: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in a weight: the steps behind it train nothing, and the weights of the checkpoint mend it."""
    monkeypatch.setattr(TrainingStep, "__call__", poison(at=3, times=1))
    log = Records(tmp_path / "log")
    train(job(tiny, tmp_path, workers=1, images=24), CPU, log, lambda *_: None)
    close(alone, tmp_path, "last", tolerance=0)
    assert max(row.get("throughput/skipped_steps", 0) for row in log.read()) == PATIENCE + 1
    assert all(np.isfinite(value) for row in log.read() for value in row.values())


def test_training_that_is_not_finite_again_fails_with_its_samples(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingStep, "__call__", poison(at=2, times=100))
    with pytest.raises(NonFiniteError, match=r"samples of that step: train/\S+, train/\S+, train/\S+, train/\S+\."):
        train(job(tiny, tmp_path, workers=1, images=48), CPU, Records(tmp_path / "log"), lambda *_: None)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_workers_agree_that_it_fails_and_no_restart_is_tried(tiny: Path, tmp_path: Path) -> None:
    doomed = job(tiny, tmp_path, workers=2, images=48, lr_generator=1e30)
    with pytest.raises(UserError, match="The samples of that step"):
        launch(doomed, Records(tmp_path / "log"), lambda *_: None)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1

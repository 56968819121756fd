"""What the loop leaves when it is stopped, killed or skips a step: nothing is lost, and nothing has another's name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_job import CPU, job

from dpgan import identities
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.training import loop
from dpgan.training.build import Job
from dpgan.training.candidates import candidate_path
from dpgan.training.checkpoint import MANIFEST, Checkpoint
from dpgan.training.holdout import Holdout
from dpgan.training.loop import train
from dpgan.training.start import check_disk, decide_start
from dpgan.training.strategy import DDPEngine


class Log:
    """A tracker that keeps what it is given."""

    def __init__(self, seconds: float = 0) -> None:
        self.rows: list[dict[str, float]] = []
        self.seconds = seconds

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        time.sleep(self.seconds)
        self.rows.append({"step": step, **values})

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        assert image.dtype == np.uint8


@pytest.fixture(autouse=True)
def few_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATISTICS_IMAGES", 8)


def task(tiny: Path, folder: Path, run: Mapping[str, Any] | None = None, **changes: Any) -> Job:
    """Four steps, evaluated after two and four, without a checkpoint that is due; `run` and `changes` on top."""
    made = job(tiny, folder, 1, **{"images": 16, "evaluate_images": 8, **changes})
    return replace(made, run=made.run.model_copy(update={"checkpoint_images": 1000, **(run or {})}))


def at(step: int) -> Callable[[], bool]:
    """A `stop` that says so when it is asked for the `step`-th time, and never again."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) == step


def run(work: Job, stop: Callable[[], bool] = lambda: False, log: Log | None = None) -> Log:
    log = log or Log()
    train(work, CPU, log, lambda *_: None, stop=stop)
    return log


def newest(work: Job) -> Checkpoint:
    found = work.checkpoints().newest()
    assert found is not None
    return found


def result(work: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((work.folder / "result.json").read_text())
    return content


def equal(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.fixture(scope="module")
def calm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STATISTICS_IMAGES", 8)
        work = task(tiny, tmp_path_factory.mktemp("calm"))
        run(work)
        yield work


def skip_update(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Leave out the `number`-th update, as a loss scale that is too high does now and then."""
    step, calls = DDPEngine.step, iter(range(1, 10_000))

    def skipping(engine: DDPEngine) -> bool:
        if next(calls) != number:
            return step(engine)
        engine.optimizer.zero_grad(set_to_none=True)
        engine.skipped += 1
        return False

    monkeypatch.setattr(DDPEngine, "step", skipping)


def test_a_stop_in_a_skipped_step_saves_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_update(monkeypatch, 5)  # the generator's of the third step
    work = task(tiny, tmp_path)
    run(work, at(3 + 2))  # two of the questions are the evaluation's
    assert newest(work).images == 12


def test_a_stop_with_broken_weights_saves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = DDPEngine.step

    def breaking(engine: DDPEngine) -> bool:
        moved = step(engine)
        if (tmp_path / "checkpoints").exists():  # behind the first one
            with torch.no_grad():
                next(engine.module.parameters()).fill_(float("nan"))
        return moved

    work = task(tiny, tmp_path, {"checkpoint_images": 4}, evaluate_images=16)
    save = loop.Loop._save
    monkeypatch.setattr(loop.Loop, "_save", lambda self: (save(self), self.checkpoints.wait()))
    monkeypatch.setattr(DDPEngine, "step", breaking)
    run(work, at(3))
    assert newest(work).images < 12


def test_a_checkpoint_that_falls_on_a_skipped_step_comes_after(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_update(monkeypatch, 3)  # of the second step
    work = task(tiny, tmp_path, {"checkpoint_images": 8}, evaluate_images=16)
    run(work)
    assert newest(work).images == 12


@pytest.mark.parametrize("question", [2, 3], ids=["before the evaluation", "in the middle of it"])
def test_a_stop_comes_before_an_evaluation_that_is_due(tiny: Path, tmp_path: Path, calm: Job, question: int) -> None:
    """The checkpoint owes it: the next start evaluates first, and ends with the same weights and the same best."""
    work = task(tiny, tmp_path)
    first = run(work, at(question))
    assert newest(work).images == 8
    assert not any("holdout/kid_lite0" in row for row in first.rows)
    second = run(work)
    assert [row["step"] for row in second.rows if "holdout/kid_lite0" in row] == [8, 16]
    assert result(work)["best"] == result(calm)["best"]
    for images in (16, int(result(calm)["best"]["images"])):
        assert equal(candidate_path(work.folder, images), candidate_path(calm.folder, images))


def test_a_stop_in_the_last_evaluation_loses_no_step(tiny: Path, tmp_path: Path, calm: Job) -> None:
    work = task(tiny, tmp_path)
    run(work, at(2 + 2 + 2))  # the fourth step ends the training: it asks nothing
    assert newest(work).images == 16
    assert not (work.folder / "result.json").exists()
    log = run(work)
    assert [row["step"] for row in log.rows] == [16]
    assert result(work)["images_per_s"] > 0
    assert equal(candidate_path(work.folder, 16), candidate_path(calm.folder, 16))


def kids(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The KIDs that the next evaluations find."""
    score, left = Holdout.score, iter(values)

    def scored(self: Holdout, *arguments: Any) -> Any:
        scores, sheet = score(self, *arguments)
        return scores | {"holdout/kid_lite0": next(left)}, sheet

    monkeypatch.setattr(Holdout, "score", scored)


def test_the_best_candidate_is_that_of_its_images(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the checkpoint that calls 16 the best was whole; the second time 8 stays the best."""
    work = task(tiny, tmp_path, {"keep_last": 3}, images=24)
    with pytest.MonkeyPatch.context() as patch:
        kids(patch, 50.0, 40.0)
        run(work, at(2 + 2 + 2 + 2 + 1))
    lost = candidate_path(tmp_path, 16)
    for path in (tmp_path / "checkpoints").glob("images_*"):
        if int(path.name[7:]) > 8:
            (path / MANIFEST).unlink()
    assert newest(work).images == 8
    kept = load_file(candidate_path(tmp_path, 8))
    save_file({key: value + 1 for key, value in load_file(lost).items()}, lost)
    kids(monkeypatch, 51.0, 52.0)
    run(work)
    assert result(work)["best"] == {"kid": 50.0, "images": 8}
    assert all(torch.equal(value, kept[key]) for key, value in load_file(candidate_path(tmp_path, 8)).items())
    assert sorted(path.name for path in (tmp_path / "candidates").iterdir()) == [
        candidate_path(tmp_path, images).name for images in (8, 24)
    ]


def test_a_candidate_that_cannot_be_written_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    work = task(tiny, tmp_path)
    monkeypatch.setattr("dpgan.training.checkpoint.write_tensors", cut_off)
    with pytest.raises(UserError, match=r"No space left on device.*what was saved before is whole"):
        run(work)
    assert list((tmp_path / "candidates").iterdir()) == []


@pytest.mark.parametrize(("batch", "kept"), [(4, [8, 16, 24]), (5, [10, 20, 24])])
def test_lasting_checkpoints_are_due_at_their_multiples(
    tiny: Path, tmp_path: Path, batch: int, kept: list[int]
) -> None:
    """Whatever `checkpoint_images` is, and at the first step behind the multiple if no step ends on it."""
    how = {"checkpoint_images": 12, "keep_every": 8, "keep_last": 1}
    work = task(tiny, tmp_path, how, images=24, batch=batch, evaluate_images=24)
    run(work)
    found = [int(path.name[7:]) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [images for images in found if images in kept] == kept
    assert len(found) <= len(kept) + 1  # the newest one


def test_a_fork_with_nothing_left_to_train_is_refused(tiny: Path, tmp_path: Path) -> None:
    run(task(tiny, tmp_path / "old"), at(3))
    fork = replace(task(tiny, tmp_path / "new", images=8), fork=tmp_path / "old")
    with pytest.raises(UserError, match=r"has seen 8 images, train\.images is 8: nothing is left.*above 8"):
        decide_start(fork)
    decide_start(replace(task(tiny, tmp_path / "new", images=12), fork=tmp_path / "old"))


def test_the_estimate_of_the_disk_bounds_what_is_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task(tiny, tmp_path, {"checkpoint_images": 4, "keep_every": 8})
    run(work)
    used = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    free = [0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    fresh = task(tiny, tmp_path / "fresh", {"checkpoint_images": 4, "keep_every": 8})
    free[0] = used
    with pytest.raises(UserError, match=r"keeps up to 6 checkpoints of .* make room, or lower run\.keep_last"):
        check_disk(fresh)
    free[0] = 4 * used
    check_disk(fresh)


def test_a_checkpoint_with_other_layers_is_refused(tiny: Path, tmp_path: Path) -> None:
    work = task(tiny, tmp_path)
    run(work, at(2))
    path = newest(work).file("generator")
    state = load_file(path)
    del state["stem.bias"]
    save_file(state, path)
    manifest = path.parent / MANIFEST
    content = json.loads(manifest.read_text())
    content["sha256"][path.name] = file_sha256(path)
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has other layers than this run's \(for one, stem\.bias: None -> "):
        run(work)


OLD, NEW = "0" * 16, identities.training_code()


def under(work: Job, code: str, commit: str, accept: str | None = None) -> Job:
    """The same training under other code."""
    run = work.run.model_copy(update={"accept_code": accept})
    return replace(work, run=run, facts={**work.facts, "code": code, "git.commit": commit})


def test_changed_code_is_refused_unless_it_is_named(tiny: Path, tmp_path: Path) -> None:
    run(under(task(tiny, tmp_path), NEW, "aaa"), at(2))
    manifest = newest(task(tiny, tmp_path)).path / MANIFEST
    manifest.write_text(manifest.read_text().replace(NEW, OLD))
    work = task(tiny, tmp_path)
    with pytest.raises(UserError, match=rf"code {OLD} of commit aaa -> {NEW} of commit bbb.*accept_code: {NEW}"):
        run(under(work, NEW, "bbb"))
    with pytest.raises(UserError, match="have changed since then"):
        run(under(work, NEW, "bbb", accept="1" * 8))
    lines: list[str] = []
    train(under(work, NEW, "bbb", accept=NEW[:8]), CPU, Log(), lambda *_: None, say=lines.append)
    assert any(f"code: {OLD} -> {NEW}; git.commit: aaa -> bbb" in line for line in lines)
    assert result(work)["commits"] == ["aaa", "bbb"]


def test_another_commit_with_the_same_code_resumes_and_says_so(tiny: Path, tmp_path: Path) -> None:
    work, lines = task(tiny, tmp_path), list[str]()
    run(under(work, NEW, "aaa"), at(2))
    train(under(work, NEW, "bbb"), CPU, Log(), lambda *_: None, say=lines.append)
    assert "resumes under other code than the checkpoint's: git.commit: aaa -> bbb" in lines


def test_workers_with_other_code_than_the_drivers_are_refused(tiny: Path, tmp_path: Path) -> None:
    """As when a file is edited while a worker is restarted."""
    with pytest.raises(UserError, match=rf"worker 0 on node \S+ has code {NEW}, not {OLD}"):
        run(under(task(tiny, tmp_path), OLD, "aaa"))


def test_a_run_keeps_the_precision_that_auto_was(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = task(tiny, tmp_path, precision="auto")
    monkeypatch.setattr("dpgan.training.agreement.native_bf16", lambda device: True)
    run(work, at(2))
    assert newest(work).facts["precision"] == "bf16"
    monkeypatch.setattr("dpgan.training.agreement.native_bf16", lambda device: False)
    run(work)
    assert result(work)["precision"] == "bf16"


def test_logging_is_no_wait_for_data(tiny: Path, tmp_path: Path) -> None:
    log = run(task(tiny, tmp_path, evaluate_images=16), log=Log(seconds=0.5))
    shares = [row["throughput/data_wait"] for row in log.rows if "throughput/data_wait" in row]
    assert len(shares) == 4
    assert max(shares[1:]) < 0.4  # of steps of some 0.1 s


def test_losses_before_an_evaluation_are_logged(tiny: Path, tmp_path: Path, calm: Job) -> None:
    """A window of four steps, with an evaluation in its middle."""
    ours = run(task(tiny, tmp_path, {"log_images": 16})).rows
    single = [row for row in run(task(tiny, tmp_path / "single")).rows if "loss/G_total" in row]
    (whole,) = (row for row in ours if "loss/G_total" in row)
    assert whole["loss/G_total"] == pytest.approx(np.mean([row["loss/G_total"] for row in single]), rel=1e-5)

"""Stacks of a worker that hangs, and what is said when memory is short."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dpgan.config import RunSettings, TrainSettings
from dpgan.training.watchdog import Watchdog, out_of_memory, what_fits


def hang(seconds: float) -> None:
    time.sleep(seconds)


def test_a_hang_leaves_the_stacks(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "stacks/rank-0.txt", 0.2)
    watchdog.beat()
    hang(1.0)
    assert "in hang" in watchdog.stacks()
    watchdog.close()
    assert not list((tmp_path / "stacks").iterdir())


def test_progress_leaves_no_stacks(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "rank-0.txt", 5)
    for _ in range(100):
        watchdog.beat()
    assert not watchdog.stacks()
    watchdog.close()


def test_real_allocations_that_fail_are_recognised() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**55)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert [out_of_memory(error.value) for error in (of_torch, of_numpy, other)] == [True, True, False]
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize(
    ("batch", "accumulate", "expected"),
    [
        (20, 1, "10 images of 64x128 at once, generator_width 64); train: {accumulate: 2} halves"),
        (20, 4, "3 images of 64x128 at once, generator_width 64); train: {accumulate: 8} halves"),
        (2, 1, "1 images of 64x128 at once, generator_width 64); one image is the least"),
    ],
)
def test_the_sentence_names_what_fits(batch: int, accumulate: int, expected: str) -> None:
    settings = TrainSettings(preset="test", images=100, batch=batch, accumulate=accumulate)
    assert expected in str(what_fits(settings, RunSettings(workers=2), (64, 128)))

"""Timing in pairs: the reference and what is held against it take turns, so that a busy machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A line of the table: how often `name` fits into the time (or memory) of `reference`."""

    suite: str
    name: str
    reference: str
    values: list[float]  # in `unit`, one a round
    reference_values: list[float]  # of the same rounds
    unit: str  # "s" or "B": less is better; "1/s": more is better
    target: float | None = None  # what the ratio shall be at least
    bound: float | None = None  # what the machine allows, as a ratio to the reference

    @property
    def ratios(self) -> np.ndarray:
        """By how much it is better than the reference, round by round."""
        ours, reference = np.array(self.values), np.array(self.reference_values)
        return ours / reference if self.unit == "1/s" else reference / ours


def seconds(work: Work, device: torch.device) -> float:
    """Of the CPU time of this process, which other processes do not lengthen; on a GPU of the clock, to the end."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(works: Mapping[str, Work], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, once a round, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, rounds):
        for name, work in works.items():
            found = seconds(work, device)
            if number >= 0:
                taken[name].append(found)
    return taken

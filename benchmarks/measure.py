"""Timing in turns: a reference and what is held against it run alternately, so that a busy machine slows both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dpgan.evaluation.efficiency import seconds

Work = Callable[[], object]
CPU = torch.device("cpu")


class Options(NamedTuple):
    """What the command line says to every suite."""

    device: torch.device
    rounds: int
    batch: int  # images of an iteration


@dataclass(frozen=True)
class Row:
    """A line of the table: what something costs, beside what the reference costs."""

    name: str
    values: Sequence[float]  # one a round; less is better
    reference: Sequence[float]  # of the same rounds
    unit: str = "second"  # or "byte"
    target: float | None = None  # how many times less than the reference it shall be
    limit: float | None = None  # or: at most so much
    bound: float | None = None  # how many times less this machine allows

    @property
    def ratios(self) -> np.ndarray:
        """How many times less than the reference, round by round."""
        return np.array(self.reference) / np.array(self.values)


def take_turns(works: Mapping[str, Work], rounds: int, device: torch.device = CPU) -> dict[str, list[float]]:
    """Seconds of each, once a round, after a round that does not count.

    Of the CPU time of this process, which other processes do not lengthen; on a GPU of the clock.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            found = seconds(work, device, clock)
            print(f"  {turn}/{rounds}  {name:30} {found:8.3f} s", file=sys.stderr, flush=True)
            if turn:
                taken[name].append(found)
    return taken

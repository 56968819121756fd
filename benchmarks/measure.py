"""Timing in turns: a reference and what is held against it run alternately, so that a busy machine slows both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


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


def seconds(work: Work, device: torch.device, wall: bool = False) -> float:
    """CPU time of this process, which other processes do not lengthen; on a GPU, and if asked for, of the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if wall or device.type == "cuda" else time.process_time
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def take_turns(
    works: Mapping[str, Work], rounds: int, device: torch.device | None = None, wall: bool = False
) -> dict[str, list[float]]:
    """Seconds of each, once a round, after a round that does not count."""
    device = device or torch.device("cpu")
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            found = seconds(work, device, wall)
            print(f"  {turn}/{rounds}  {name:30} {found:8.3f} s", file=sys.stderr, flush=True)
            if turn:
                taken[name].append(found)
    return taken


def operations(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())

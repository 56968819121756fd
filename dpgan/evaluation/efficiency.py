"""What a generator costs: parameters, FLOPs, latency and peak memory (supplement, table 5), beside the others' costs.

Latencies compare only within one run: machines are noisy. So the generators take turns, and each is told as a ratio to
the first as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from dpgan.evaluation.engine import CPU
from dpgan.models.generators import Generator, build_generator

WITHIN_S = 60.0  # after which no generator and no round is begun


@dataclass(frozen=True)
class Cost:
    """Of one generator, for one batch."""

    parameters: int
    flops: int  # of a forward pass; a multiplication and an addition count as two
    rounds: int
    latency_ms: float  # median of the rounds
    latency_ms_low: float  # their quartiles
    latency_ms_high: float
    relative: float  # median over the rounds of its latency divided by that of the first generator
    peak_memory: int  # bytes of all tensors that live at once, weights included; what kernels take inside is not seen


@torch.no_grad()
def costs(
    generators: Mapping[str, Generator],
    size: tuple[int, int],
    device: torch.device,
    batch: int = 1,
    rounds: int = 10,
    within_s: float = WITHIN_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Cost]:
    """The costs of generators in eval mode on `device`, for `batch` label maps of `size` (height, width).

    After `within_s` no further round begins, except the first, and no further generator: those are not in the result.
    """
    end = clock() + within_s
    counted: dict[str, tuple[int, int]] = {}
    inputs = {name: _inputs(generator, size, batch, device) for name, generator in generators.items()}
    for name, generator in generators.items():
        if not counted or clock() < end:  # two passes, which also warm up
            counted[name] = flops(partial(generator, *inputs[name])), _peak_memory(generator, *inputs[name])
    latencies: dict[str, list[float]] = {name: [] for name in counted}
    for turn in range(rounds):
        if turn and clock() >= end:
            break
        for name in counted:
            latencies[name].append(1000 * seconds(partial(generators[name], *inputs[name]), device, clock))
    first = np.array(next(iter(latencies.values())))
    found = {}
    for name, (operations, memory) in counted.items():
        taken = np.array(latencies[name])
        low, median, high = np.quantile(taken, [0.25, 0.5, 0.75])
        found[name] = Cost(
            parameters=sum(p.numel() for p in generators[name].parameters()),
            flops=operations,
            rounds=len(taken),
            latency_ms=float(median),
            latency_ms_low=float(low),
            latency_ms_high=float(high),
            relative=float(np.median(taken / first)),
            peak_memory=memory,
        )
    return found


@dataclass(frozen=True)
class Costs:
    """`costs` of generators that are built by the process that measures them."""

    arguments: Mapping[str, Mapping[str, Any]]  # of `build_generator`, by the generator's name
    size: tuple[int, int]
    device: torch.device = CPU.device

    def to(self, device: torch.device) -> Costs:
        """The same, on a device."""
        return replace(self, device=device)

    def __call__(self, _: None, /) -> dict[str, Cost]:
        """By the generator's name; the first is the measure of the others."""
        generators = {name: build_generator(**own).eval().to(self.device) for name, own in self.arguments.items()}
        return costs(generators, self.size, self.device)


def blocks_of_labels(classes: int, size: tuple[int, int], batch: int, random: torch.Generator) -> torch.Tensor:
    """Label maps uint8 [b, H, W] of random 8x8 blocks."""
    blocks = torch.randint(classes, (batch, size[0] // 8, size[1] // 8), generator=random)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).byte()


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of `work`, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def flops(work: Callable[[], object]) -> int:
    """Of the matrix products and convolutions in `work`; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _inputs(
    generator: Generator, size: tuple[int, int], batch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label maps and noise."""
    random = torch.Generator().manual_seed(0)
    labels = blocks_of_labels(generator.num_classes, size, batch, random)
    return labels.to(device), torch.randn(batch, generator.noise_channels, generator=random).to(device)


def _peak_memory(generator: Generator, labels: torch.Tensor, noise: torch.Tensor) -> int:
    tracker = MemTracker()
    tracker.track_external(generator)
    with tracker:
        generator(labels, noise)
    return int(tracker.get_tracker_snapshot("peak")[labels.device]["Total"])

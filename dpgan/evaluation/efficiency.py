"""What a generator costs: parameters, FLOPs, latency and peak memory (supplement, table 5), beside the others' costs.

Latencies compare only within one run: machines are noisy. So the generators take turns, and each is told as a ratio to
the first as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from dpgan.models.generators import Generator

WARM_UP = 2  # passes before the clock starts


@dataclass(frozen=True)
class Cost:
    """Of one generator, for one batch."""

    parameters: int
    flops: int  # of a forward pass; a multiplication and an addition count as two
    latency_ms: float  # median of the rounds
    latency_ms_low: float  # their quartiles
    latency_ms_high: float
    relative: float  # median over the rounds of its latency divided by that of the first generator
    peak_memory: int  # bytes of all tensors that live at once, weights included; what kernels take inside is not seen


@torch.no_grad()
def costs(
    generators: Mapping[str, Generator], size: tuple[int, int], device: torch.device, batch: int = 1, rounds: int = 10
) -> dict[str, Cost]:
    """The costs of generators in eval mode on `device`, for `batch` label maps of `size` (height, width)."""
    inputs = {name: _inputs(generator, size, batch, device) for name, generator in generators.items()}
    latencies: dict[str, list[float]] = {name: [] for name in generators}
    for turn in range(WARM_UP + rounds):
        for name, generator in generators.items():
            taken_s = seconds(partial(generator, *inputs[name]), device)
            if turn >= WARM_UP:
                latencies[name].append(1000 * taken_s)
    first = np.array(next(iter(latencies.values())))
    found = {}
    for name, generator in generators.items():
        taken = np.array(latencies[name])
        low, median, high = np.quantile(taken, [0.25, 0.5, 0.75])
        found[name] = Cost(
            parameters=sum(p.numel() for p in generator.parameters()),
            flops=flops(partial(generator, *inputs[name])),
            latency_ms=float(median),
            latency_ms_low=float(low),
            latency_ms_high=float(high),
            relative=float(np.median(taken / first)),
            peak_memory=_peak_memory(generator, *inputs[name]),
        )
    return found


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

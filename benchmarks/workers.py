"""An iteration on one worker and on two of this machine, and what the workers tell each other meanwhile."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import profile

from benchmarks.measure import Options, Row
from benchmarks.networks import BF16, CITYSCAPES, Inputs, our_iteration
from dpgan.evaluation.efficiency import seconds


def workers(options: Options) -> Iterator[Row | str]:
    """Seconds of the clock for an image, a worker a core, one image each: bf16, one fake, DDP on gloo."""
    alone, _ = _train(1, options)
    together, told = _train(2, options)
    yield Row(f"an image, {CITYSCAPES}: 2 workers, not 1", [s / 2 for s in together], alone, bound=2.0)
    for name, (calls, bytes_) in sorted(told.items()):
        yield f"{name}: {calls} an iteration, {bytes_ / 1e6:.2f} MB from each worker"


def _train(count: int, options: Options) -> tuple[list[float], dict[str, tuple[int, int]]]:
    """Seconds of the iterations, and (calls, bytes) of an iteration by collective."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (count, options, folder), nprocs=count)
        return torch.load(Path(folder) / "result.pt")


def _work(rank: int, count: int, options: Options, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    work = our_iteration(Inputs(CITYSCAPES, options.device), BF16, shared_fake=True)
    work()
    taken = [seconds(work, options.device) for _ in range(options.rounds)]
    with profile(record_shapes=True) as profiler:
        work()
    told: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for event in profiler.events():
        if event.name.startswith("gloo:"):
            name = event.name.removeprefix("gloo:")
            calls, bytes_ = told[name]
            told[name] = calls + 1, bytes_ + _bytes(event)
    if rank == 0:
        torch.save((taken, dict(told)), Path(folder) / "result.pt")
    dist.barrier()
    dist.destroy_process_group()


def _bytes(event: Any) -> int:
    """Of the first tensor that the collective was given; fp32."""
    sizes = [shape for shape in event.input_shapes if shape]
    return 4 * int(torch.Size(sizes[0]).numel()) if sizes else 0

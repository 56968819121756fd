"""Where networks compute: in this process or in Ray's workers, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import torch

from dpgan.cluster import FEW, Share, Workers
from dpgan.hardware import Place, device_name

JobT = TypeVar("JobT", contravariant=True)
ResultT = TypeVar("ResultT", covariant=True)


CPU = Place(torch.device("cpu"), here=True)


class Movable(Protocol[JobT, ResultT]):
    """A function of jobs that holds networks."""

    def to(self, device: torch.device) -> Self:
        """Itself, with its networks on a device."""
        ...

    def __call__(self, job: JobT, /) -> ResultT: ...


@dataclass(frozen=True)
class _Placed:
    """A function whose networks go to their device in the process that calls it, when it first does."""

    function: Movable[Any, Any]
    device: torch.device

    @cached_property
    def moved(self) -> Callable[[Any], Any]:
        return self.function.to(self.device)

    def __call__(self, job: Any) -> Any:
        return self.moved(job)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without `moved`: another process has another device of that name."""
        return _Placed, (self.function, self.device)


class Engine:
    """Does jobs with networks at one `Place`.

    In this process if it has the device and they are few, or `workers` is 1; else in Ray's workers, one per CPU or GPU.
    `workers`: CPUs of a Ray that is started for it. The workers stay until more memory is asked for or `close`.
    """

    def __init__(self, place: Place = CPU, workers: int | None = None) -> None:
        self.place, self.workers = place, workers
        self._pool: Workers | None = None
        self._placed: _Placed | None = None

    def each(
        self, function: Movable[JobT, ResultT], jobs: Sequence[JobT], memory: int
    ) -> Generator[tuple[int, ResultT], None, None]:
        """(position of the job, `function` of it) for all jobs, as they come; `memory`: bytes of a worker."""
        if self._placed is None or self._placed.function is not function:  # a worker loads the same one once
            self._placed = _Placed(function, self.place.device)
        if self.place.here and (self.workers == 1 or (self.workers is None and len(jobs) <= FEW)):
            placed = self._placed
            yield from ((i, placed(job)) for i, job in enumerate(jobs))
        else:
            yield from self._with(memory).each(self._placed, jobs, at_once=1)

    def once(self, function: Movable[JobT, ResultT], job: JobT, memory: int) -> ResultT:
        """`function` of one job."""
        ((_, result),) = self.each(function, [job], memory)
        return result

    def in_turn(
        self, function: Movable[JobT, ResultT], jobs: Sequence[JobT], memory: int
    ) -> Generator[ResultT, None, None]:
        """`function` of one job after the other, all in one process: a training, whose state the function holds.

        If a worker dies, another one goes on with the function as it was sent: the function must refuse.
        """
        if self.place.here:
            moved = function.to(self.place.device)
            yield from (moved(job) for job in jobs)
            return
        self.close()
        self._pool = self._workers(memory, most=1)
        for _, result in self._pool.each(_Placed(function, self.place.device), jobs, at_once=1):
            yield result

    def device_name(self) -> str:
        """The model of the CPU or GPU that computes."""
        return device_name(self.place.device) if self.place.here else self.once(_Named(), None, 0)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._placed = None

    def _with(self, memory: int) -> Workers:
        """Workers that have so much memory."""
        if self._pool is None or self._pool.share.memory < memory:
            if self._pool is not None:
                self._pool.close()
            self._pool = self._workers(memory)
        return self._pool

    def _workers(self, memory: int, most: int | None = None) -> Workers:
        return Workers(Share(gpus=int(self.place.device.type == "cuda"), memory=memory), self.workers, most)


class _Named:
    """Which device it is called on."""

    def to(self, device: torch.device) -> Self:
        self.device = device
        return self

    def __call__(self, _: None, /) -> str:
        return device_name(self.device)

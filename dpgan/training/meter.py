"""What the loop measures: mean losses of the global batches, images/s, and the share of time that waits for data."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from dpgan.training.strategy import sum_over_workers


class Meter:
    """Collects between two readings; images count over all workers."""

    def __init__(self) -> None:
        self.images = self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Leave out what was no training: evaluation, checkpoints."""
        self.last = time.perf_counter()
        self.terms: dict[str, Tensor] = {}
        self.steps = self.seen = 0
        self.busy = self.waited = 0.0

    def asks_for_data(self) -> None:
        """Training asks for its next batch: what lay between, logging or a checkpoint, is no wait for data."""
        self.last = time.perf_counter()

    def data_arrived(self) -> None:
        now = time.perf_counter()
        self.waited += now - self.last
        self.last = now

    def step_done(self, terms: Mapping[str, Tensor], images: int) -> None:
        """`terms` of a step on `images` images: this worker's part of each, which add up over the workers.

        Empty if the step was skipped, on all workers.
        """
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        self.steps += bool(terms)
        self.seen += images
        now = time.perf_counter()
        self.busy += now - self.last
        self.last = now

    def rate(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def read(self) -> dict[str, float]:
        """Metrics since the last reading; every worker must call it."""
        values: dict[str, float] = {}
        if self.terms:  # none of any worker if all steps were skipped: nothing to sum up
            means = sum_over_workers(torch.stack([value.float() for value in self.terms.values()])) / self.steps
            values = {f"loss/{name}": float(v) for name, v in zip(self.terms, means, strict=True)}
        elapsed = max(self.busy + self.waited, 1e-9)
        self.images, self.seconds = self.images + self.seen, self.seconds + elapsed
        values["throughput/images_per_s"] = self.seen / elapsed
        values["throughput/data_wait"] = self.waited / elapsed
        self.restart()
        return values

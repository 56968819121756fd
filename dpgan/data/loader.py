"""DALI feeds training from the prepared arrays: slice, crop, flip, normalise, and, on a GPU, transfer.

The order and every draw come from `order.py`; DALI does the pixel work on the indices that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch import Tensor

from dpgan.data import order


class Batch(NamedTuple):
    """One worker's share of a step."""

    step: int
    positions: list[int]
    sizes: list[int]  # samples of each micro-batch, in this order
    images: Tensor  # float32 [b, 3, H, W] in [-1, 1], channels last in memory
    labels: Tensor  # uint8 [b, H, W], class indices


class Source:
    """DALI's callback: the raw samples of one worker, step by step, with their draws.

    `batch` and `total`, the images of the whole run, count over all workers.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        samples: np.ndarray,
        *,
        seed: int,
        batch: int,
        total: int,
        accumulate: int,
        rank: int,
        workers: int,
        steps: range,
        flip: bool,
        crop: tuple[int, int] | None,
    ) -> None:
        self.images, self.labels, self.samples = images, labels, samples
        self.seed, self.steps, self.flip = seed, steps, flip
        self.share = partial(
            order.positions, batch=batch, images=total, accumulate=accumulate, rank=rank, workers=workers
        )
        self.size: tuple[int, int] = images.shape[1:3]
        self.crop = crop or self.size

    def __call__(self, info: types.BatchInfo) -> tuple[list[np.ndarray], ...]:
        if info.iteration >= len(self.steps):
            raise StopIteration
        images, labels, flips = [], [], []
        for position in chain(*self.share(self.steps[info.iteration])):
            sample = self.samples[order.sample_at(self.seed, position, len(self.samples))]
            top, left = order.crop_at(self.seed, position, self.size, self.crop)
            window = np.s_[top : top + self.crop[0], left : left + self.crop[1]]
            images.append(np.ascontiguousarray(self.images[sample][window]))
            labels.append(np.ascontiguousarray(self.labels[sample][window])[..., None])
            flips.append(np.array(self.flip and order.flip_at(self.seed, position), dtype=np.int32))
        return images, labels, flips


@pipeline_def
def _pipeline(source: Source, gpu: bool) -> Any:
    images, labels, flip = fn.external_source(
        source=source,
        num_outputs=3,
        batch=True,
        batch_info=True,
        dtype=[types.UINT8, types.UINT8, types.INT32],
        layout=["HWC", "HWC", ""],
    )
    pixels, ids = (images.gpu(), labels.gpu()) if gpu else (images, labels)
    pixels = fn.crop_mirror_normalize(
        pixels, mirror=flip, mean=[127.5] * 3, std=[127.5] * 3, dtype=types.FLOAT, output_layout="HWC"
    )
    return pixels, fn.flip(ids, horizontal=flip)


def batches(source: Source, device: torch.device, threads: int = 1) -> Iterator[Batch]:
    """The steps of `source`, prefetched by DALI, as tensors on `device`."""
    if not source.steps:
        return
    gpu = device.type == "cuda"
    pipeline = _pipeline(
        source,
        gpu,
        batch_size=sum(map(len, source.share(source.steps[0]))),  # the largest: only the last batch is smaller
        num_threads=threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    iterator = DALIGenericIterator([pipeline], ["images", "labels"], size=-1, auto_reset=False)
    for step, (output,) in zip(source.steps, iterator, strict=False):
        images, labels = output["images"], output["labels"]
        micro = source.share(step)
        yield Batch(step, list(chain(*micro)), [len(part) for part in micro],
                    images.permute(0, 3, 1, 2), labels.squeeze(-1))  # fmt: skip

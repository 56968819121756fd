"""What is seen in a set of images: features and the judge's reading, image by image, spread over Ray's workers.

A job is a batch of label maps with their numbers in the split, read when it is sent off. The batches are the same
whoever works on them, and the noise of an image depends on its number and the noise seed alone, so the number of
workers changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpgan.cluster import each
from dpgan.data import order
from dpgan.data.pixels import to_float
from dpgan.evaluation.baselines import paint
from dpgan.evaluation.features import FeatureExtractor
from dpgan.evaluation.judges import Judge
from dpgan.evaluation.lpips import Lpips
from dpgan.evaluation.readings import read
from dpgan.hardware import exact_fp32
from dpgan.labels import Card
from dpgan.models.generators import Generator, build_generator

Report = Callable[[int, int], None]
CHUNK = 4  # batches a Ray task: networks are unpacked once for them


class Job(NamedTuple):
    """A batch of label maps; `images` is empty where only label maps are needed."""

    numbers: Sequence[int]  # in their split
    labels: np.ndarray  # uint8 [B, H, W], class indices
    images: np.ndarray  # uint8 [B, H, W, 3], or [0]


@dataclass(frozen=True)
class Jobs(Sequence[Job]):
    """Batches of chosen rows of a split's arrays (memory maps will do), resized by a factor."""

    labels: np.ndarray  # uint8 [N, H, W]
    images: np.ndarray | None  # uint8 [N, H, W, 3]
    rows: np.ndarray  # int [n]
    batch: int
    factor: float = 1

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    @overload
    def __getitem__(self, index: int) -> Job: ...

    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...

    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = self.rows[index * self.batch : (index + 1) * self.batch]
        labels = resized(self.labels[rows], self.factor, Image.Resampling.NEAREST)
        if self.images is None:
            return Job(rows.tolist(), labels, np.empty(0, np.uint8))
        return Job(rows.tolist(), labels, resized(self.images[rows], self.factor, Image.Resampling.BICUBIC))


def resized(arrays: np.ndarray, factor: float, how: Image.Resampling) -> np.ndarray:
    """uint8 [B, H, W, ...] with both sides times `factor`, by the filters that `prepare` uses."""
    if factor == 1:
        return arrays
    height, width = (round(side * factor) for side in arrays.shape[1:3])
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height), how)) for one in arrays])


# Where images come from: (job, noise seed) -> float [B, 3, H, W] in [-1, 1].
Source = Callable[[Job, int], Tensor]


def photos(job: Job, seed: int) -> Tensor:
    """The job's own images, whatever the seed."""
    return to_float(job.images)


@dataclass(frozen=True)
class Painted:
    """Every pixel in its class's colour, whatever the seed."""

    colors: np.ndarray  # [C, 3] in 0..255

    def __call__(self, job: Job, seed: int) -> Tensor:
        return to_float(paint(job.labels, self.colors))


@dataclass(frozen=True)
class Generated:
    """A generator's images. The noise of image i depends on the noise seed and i alone."""

    generator: Generator  # from `build_generator`

    @torch.no_grad()
    def __call__(self, job: Job, seed: int) -> Tensor:
        device = next(self.generator.parameters()).device
        noise = torch.from_numpy(order.noise_at(seed, job.numbers, self.generator.noise_channels))
        with exact_fp32(device):
            return self.generator(torch.tensor(job.labels).to(device), noise.to(device)).float().cpu()

    def __reduce__(self) -> tuple[Any, ...]:
        """By arguments and weights, for another process: torch pickles no spectral norms."""
        return _generated, (self.generator.arguments, self.generator.state_dict())


def _generated(arguments: dict[str, Any], weights: dict[str, Tensor]) -> Generated:
    generator = build_generator(**arguments)
    generator.load_state_dict(weights)
    return Generated(generator.eval().to(next(iter(weights.values())).device))


@dataclass(frozen=True)
class Measured:
    """What was seen in the images of N label maps under S noise seeds, in the split's order."""

    features: np.ndarray  # float64 [S, N, D]; D is 0 where no extractor looked
    tables: np.ndarray  # int64 [S, N, K, 3] (`readings.tables`); K is 0 where no judge looked
    apart: np.ndarray  # float64 [N]: mean LPIPS of two of the S images of a label map; [0] where it was not measured


@dataclass(frozen=True)
class Observer:
    """Makes the images of a job under every noise seed, and looks at them."""

    source: Source
    seeds: tuple[int, ...]
    extractor: FeatureExtractor | None
    judge: Judge | None
    card: Card
    lpips: Lpips | None = None

    def __call__(self, job: Job) -> Measured:
        """What is seen in the images of one job."""
        images = torch.stack([self.source(job, seed) for seed in self.seeds])
        features, tables = np.empty((*images.shape[:2], 0)), np.empty((*images.shape[:2], 0, 3), dtype=np.int64)
        if self.extractor:
            features = np.stack([self.extractor(one).numpy() for one in images])
        if self.judge:
            tables = np.stack([read(self.judge, one, job.labels, self.card) for one in images])
        return Measured(features, tables, self.lpips.apart(images).numpy() if self.lpips else np.empty(0))


def measure(observer: Observer, jobs: Jobs, workers: int | None = None, report: Report | None = None) -> Measured:
    """What `observer` sees in the images of all jobs.

    Ray tasks on all CPUs, or GPUs where the networks are on one; a few jobs, or `workers` 1, stay in this process.
    """
    seen: dict[int, Measured] = {}
    done, total = 0, len(jobs.rows)
    on_gpu = any(network.device.type == "cuda" for network in (observer.extractor, observer.judge) if network)
    for position, part in each(observer, jobs, workers, CHUNK, gpus=int(on_gpu)):
        seen[position] = part
        done += part.features.shape[1]
        if report:
            report(done, total)
    parts = [seen[position] for position in range(len(jobs))]
    return Measured(
        np.concatenate([part.features for part in parts], axis=1),
        np.concatenate([part.tables for part in parts], axis=1),
        np.concatenate([part.apart for part in parts]),
    )

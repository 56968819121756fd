"""What is seen in a set of images: features and the judge's reading, image by image, by the workers of an `Engine`.

A job is some label maps with their numbers in the split, read when it is sent. A worker makes and looks at the images
of a job in portions that fit its memory (`portions`). The noise of an image depends on its number and the noise seed
alone, so neither the portions nor the number of workers change anything but rounding. What stays is features and
tables, no images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpgan.data import order
from dpgan.data.pixels import to_float, to_uint8
from dpgan.evaluation import portions
from dpgan.evaluation.baselines import paint
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.features import FeatureExtractor
from dpgan.evaluation.judges import Judge
from dpgan.evaluation.lpips import Lpips
from dpgan.evaluation.readings import read
from dpgan.hardware import exact_fp32
from dpgan.labels import Card
from dpgan.models.generators import Generator, build_generator

Report = Callable[[int, int], None]


class Job(NamedTuple):
    """Some label maps; `images` is empty if only label maps are needed."""

    numbers: Sequence[int]  # in their split
    labels: np.ndarray  # uint8 [B, H, W], class indices
    images: np.ndarray  # uint8 [B, H, W, 3], or [0]

    def split(self, size: int) -> list[Job]:
        """Jobs of `size` label maps each; the last may have fewer."""
        starts = range(0, len(self.numbers), size)
        return [Job(self.numbers[i : i + size], self.labels[i : i + size], self.images[i : i + size]) for i in starts]


@dataclass(frozen=True)
class Jobs(Sequence[Job]):
    """Chosen rows of a split's arrays (memory maps will do), resized by a factor, some `pixels` to a job."""

    labels: np.ndarray  # uint8 [N, H, W]
    images: np.ndarray | None  # uint8 [N, H, W, 3]
    rows: np.ndarray  # int [n]
    factor: float = 1
    pixels: int = portions.PIXELS

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the label maps."""
        height, width = (round(side * self.factor) for side in self.labels.shape[1:])
        return height, width

    @property
    def batch(self) -> int:
        """Label maps of a job."""
        return max(1, self.pixels // math.prod(self.size))

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

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""
        self.generator.to(device)
        return self

    @torch.no_grad()
    def __call__(self, job: Job, seed: int) -> Tensor:
        device = next(self.generator.parameters()).device
        noise = torch.from_numpy(order.noise_at(seed, job.numbers, self.generator.noise_channels))
        with exact_fp32(device):
            return self.generator(torch.tensor(job.labels).to(device), noise.to(device)).float().cpu()

    def __reduce__(self) -> tuple[Any, ...]:
        """By arguments and weights, for another process: torch pickles no spectral norms."""
        weights = {name: value.cpu() for name, value in self.generator.state_dict().items()}
        return _generated, (self.generator.arguments, weights)


def _generated(arguments: dict[str, Any], weights: dict[str, Tensor]) -> Generated:
    generator = build_generator(**arguments)
    generator.load_state_dict(weights)
    return Generated(generator.eval())


@dataclass(frozen=True)
class Pictures:
    """Images of a source as bytes: (job, noise seed) -> uint8 [B, H, W, 3]."""

    source: Generated

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""
        self.source.to(device)
        return self

    def __call__(self, asked: tuple[Job, int]) -> np.ndarray:
        """One image at a time."""
        job, seed = asked
        return np.concatenate([to_uint8(self.source(one, seed)) for one in job.split(1)])


@dataclass(frozen=True)
class Measured:
    """What was seen in the images of N label maps under S noise seeds, in the split's order."""

    features: np.ndarray  # float64 [S, N, D]; D is 0 if no extractor looked
    tables: np.ndarray  # int64 [S, N, K, 3] (`readings.tables`); K is 0 if no judge looked
    apart: np.ndarray  # float64 [N]: mean LPIPS of two of the S images of a label map; [0] if it was not measured


def joined(parts: Sequence[Measured]) -> Measured:
    """What was seen in all parts, in their order."""
    return Measured(
        np.concatenate([part.features for part in parts], axis=1),
        np.concatenate([part.tables for part in parts], axis=1),
        np.concatenate([part.apart for part in parts]),
    )


@dataclass(frozen=True)
class Observer:
    """Makes the images of a job under every noise seed, and looks at them, a portion at a time."""

    source: Source
    seeds: tuple[int, ...]
    extractor: FeatureExtractor | None
    judge: Judge | None
    card: Card
    lpips: Lpips | None = None

    def to(self, device: torch.device) -> Self:
        """Itself, with all networks on a device."""
        for network in (*networks(self.source), self.extractor, self.judge, self.lpips):
            if network is not None:
                network.to(device)
        return self

    def image_bytes(self, pixels: int) -> int:
        """Bytes for the images of one label map of so many pixels, while they are made and looked at."""
        at_work = [portions.painting(generator, pixels) for generator in networks(self.source)]
        at_work += [portions.extracting(self.extractor.side)] if self.extractor else []
        at_work += [4 * pixels * portions.COMPARED * len(self.seeds)] if self.lpips else []
        return 12 * pixels * len(self.seeds) + max(at_work, default=0)

    def worker_bytes(self, jobs: Jobs) -> int:
        """Bytes of a process that does these jobs; the judge has portions of its own."""
        loaded = [*networks(self.source), *(one for one in (self.judge, self.lpips) if one is not None)]
        largest = max(self.image_bytes(math.prod(jobs.size)), self.judge.image_bytes(*jobs.size) if self.judge else 0)
        return portions.worker(loaded, largest, min(jobs.batch, len(jobs.rows)))

    def __call__(self, job: Job) -> Measured:
        """What is seen in the images of one job."""
        device = self.judge.device if self.judge else self.extractor.device if self.extractor else torch.device("cpu")
        at_once = portions.portion(self.image_bytes(job.labels[0].size), portions.free(device))
        return joined([self._look(part) for part in job.split(at_once)])

    def _look(self, job: Job) -> Measured:
        images = torch.stack([self.source(job, seed) for seed in self.seeds])
        features, tables = np.empty((*images.shape[:2], 0)), np.empty((*images.shape[:2], 0, 3), dtype=np.int64)
        if self.extractor:
            features = np.stack([self.extractor(one).numpy() for one in images])
        if self.judge:
            tables = np.stack([read(self.judge, one, job.labels, self.card) for one in images])
        return Measured(features, tables, self.lpips.apart(images).numpy() if self.lpips else np.empty(0))


def networks(source: Source) -> list[Generator]:
    """The generator behind a source, if one is."""
    return [source.generator] if isinstance(source, Generated) else []


def measure(observer: Observer, jobs: Jobs, engine: Engine, report: Report | None = None) -> Measured:
    """What `observer` sees in the images of all jobs; `report`: called with images done and in all, from 0 on."""
    seen: dict[int, Measured] = {}
    done, total = 0, len(jobs.rows)
    if report:
        report(done, total)
    for position, part in engine.each(observer, jobs, observer.worker_bytes(jobs)):
        seen[position] = part
        done += part.features.shape[1]
        if report:
            report(done, total)
    return joined([seen[position] for position in range(len(jobs))])

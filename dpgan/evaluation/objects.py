"""FID and KID of objects, by their size (supplement, table 1): crops of generated images against those of the photos.

An object is an instance of the dataset's instance maps or, where it has none, a connected piece of a countable class
(`thing` in the card), neighbours in eight directions. Its box is that of its pixels in the label map, its size their
number: more than 10000 pixels at 256x512 are large, less than 2500 small, and these bounds scale with the image's area.
Pieces of less than 100 pixels there show nothing, and are left out; the paper says nothing of them.

Each crop is resized to the extractor's square, bilinear and antialiased, whatever its aspect. FID falls with N: groups
compare across models, not with each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage

from dpgan.data.prepare import Split
from dpgan.evaluation import portions
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.features import FeatureExtractor
from dpgan.evaluation.fid import fid, fid_contributions, kid_with_contributions
from dpgan.evaluation.intervals import Estimate, of_sums
from dpgan.evaluation.judges.base import resize
from dpgan.evaluation.measure import Job, Jobs, Report, Source, networks
from dpgan.labels import Card

AREA = 256 * 512  # pixels of an image, to which the three bounds belong
LARGE, SMALL, LEAST = 10000, 2500, 100  # pixels of an object
GROUPS = ("all", "large", "medium", "small")
CODES = 1000  # an instance's pixels hold id * 1000 + k; what is below is no instance

Parts = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Objects:
    """M objects of a split, in the order of its images."""

    image: np.ndarray  # int [M], number of the image
    box: np.ndarray  # int [M, 4]: top, left, bottom, right; the last two behind the last pixel
    pixels: np.ndarray  # int [M]
    area: int  # pixels of an image
    source: str  # "instances" or "pieces"

    @property
    def digest(self) -> str:
        """sha256 of which crops these are."""
        return hashlib.sha256(self.image.tobytes() + self.box.tobytes()).hexdigest()

    def counts(self) -> dict[str, int]:
        """How many objects each group holds."""
        return {group: int(chosen.sum()) for group, chosen in self.groups().items()}

    def groups(self) -> dict[str, np.ndarray]:
        """bool [M] by the names of GROUPS: which objects belong to it."""
        at_reference = self.pixels * (AREA / self.area)
        large, small = at_reference > LARGE, at_reference < SMALL
        return dict(zip(GROUPS, (np.ones_like(large), large, ~large & ~small, small), strict=True))


def find_objects(split: Split, card: Card) -> Objects:
    """The objects of every label map of a prepared split."""
    height, width = split.labels.shape[1:]
    least = LEAST * height * width / AREA
    rows: list[tuple[int, ...]] = []
    for number, labels in enumerate(split.labels):
        layers = _pieces(labels, card.things) if split.instances is None else [_instances(split.instances[number])]
        for layer in layers:
            sizes = np.bincount(layer.ravel())
            for which, (down, across) in enumerate(ndimage.find_objects(layer), start=1):
                if sizes[which] >= least:
                    rows.append((number, down.start, across.start, down.stop, across.stop, sizes[which]))
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    source = "pieces" if split.instances is None else "instances"
    return Objects(table[:, 0], table[:, 1:5], table[:, 5], height * width, source)


def which_objects(card: Card) -> dict[str, Any]:
    """What decides which crops are scored, except the data."""
    return {"things": np.flatnonzero(card.things).tolist(), "pixels": [LARGE, SMALL, LEAST], "of": AREA}


def _instances(codes: np.ndarray) -> np.ndarray:
    """int [H, W]: 1, 2, ... in the objects of an instance map, 0 elsewhere."""
    present, numbered = np.unique(np.where(codes >= CODES, codes, 0), return_inverse=True)
    numbered = numbered.reshape(codes.shape)
    return numbered if present[0] == 0 else numbered + 1


def _pieces(labels: np.ndarray, things: np.ndarray) -> Iterator[np.ndarray]:
    """int [H, W] for every countable class in a label map: 1, 2, ... in its connected pieces, 0 elsewhere."""
    for index in np.flatnonzero(things[: labels.max() + 1]):
        mask = labels == index
        if mask.any():
            yield ndimage.label(mask, structure=np.ones((3, 3)))[0]


@dataclass(frozen=True)
class CropObserver:
    """Makes the images of a job under every noise seed, and looks at the objects in them."""

    source: Source
    seeds: tuple[int, ...]
    extractor: FeatureExtractor
    objects: Objects

    def to(self, device: torch.device) -> Self:
        """Itself, with all networks on a device."""
        for generator in networks(self.source):
            generator.to(device)
        self.extractor.to(device)
        return self

    def image_bytes(self, pixels: int) -> int:
        """Bytes for the images of one label map of so many pixels, while they are made."""
        painting = [portions.painting(generator, pixels) for generator in networks(self.source)]
        return 12 * pixels * len(self.seeds) + max(painting, default=0)

    def worker_bytes(self, jobs: Jobs) -> int:
        """Bytes of a process that does these jobs."""
        largest = max(self.image_bytes(math.prod(jobs.size)), portions.extracting(self.extractor.side))
        return portions.worker(networks(self.source), largest, max(jobs.batch, portions.AT_ONCE // largest))

    def __call__(self, job: Job) -> np.ndarray:
        """Features of the crops of every object in the job's images, in order: float64 [S, m, D]."""
        at_once = portions.portion(self.image_bytes(job.labels[0].size), portions.free(self.extractor.device))
        return np.concatenate([self._look(part) for part in job.split(at_once)], axis=1)

    @torch.no_grad()
    def _look(self, job: Job) -> np.ndarray:
        boxes = [self.objects.box[self.objects.image == number] for number in job.numbers]
        found = [np.empty((len(self.seeds), 0, self.extractor.dimension))]
        side = (self.extractor.side, self.extractor.side)
        images = [self.source(job, seed) for seed in self.seeds] if any(map(len, boxes)) else []
        at_once = portions.portion(portions.extracting(self.extractor.side), portions.free(self.extractor.device))
        for some in _batched([(i, box) for i, many in enumerate(boxes) for box in many], at_once):
            seen = []
            for made in images:
                crops = [resize(made[i : i + 1, :, top:end, left:right], side) for i, (top, left, end, right) in some]
                seen.append(self.extractor(torch.cat(crops)).numpy())
            found.append(np.stack(seen))
        return np.concatenate(found, axis=1)


def measure_crops(observer: CropObserver, jobs: Jobs, engine: Engine, report: Report | None = None) -> np.ndarray:
    """Features of all objects, in their order, in the images of all jobs: float64 [S, M, D].

    report: called with objects done and in all, from 0 on.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(jobs)
    done, total = 0, len(observer.objects.image)
    if report:
        report(done, total)
    for position, seen in engine.each(observer, jobs, observer.worker_bytes(jobs)):
        found[position] = seen
        done += seen.shape[1]
        if report and seen.shape[1]:
            report(done, total)
    return np.concatenate(found, axis=1)


def object_scores(
    real: np.ndarray, fakes: np.ndarray, objects: Objects, images: int, extractor: str
) -> dict[str, Estimate]:
    """`fid_EXTRACTOR_objects_GROUP` and `kid_`, with the number of crops as `n`; a group within one image has no score.

    real, fakes: features of the photos' crops [M, D], and of the images' under every noise seed [S, M, D]. images: of
    the split; for the intervals each is left out with all of its objects. KID as `fid.kid`, times 1000.
    """
    found: dict[str, Estimate] = {}
    for group, chosen in objects.groups().items():
        n, where = int(chosen.sum()), objects.image[chosen]
        if len(np.unique(where)) < 2:
            continue
        which = slice(None) if chosen.all() else chosen  # no copy of all
        x = real[which]
        fids, kids = [], []
        for fake in fakes:
            y = fake[which]
            fids.append((fid(x, y), _by_image(fid_contributions(x, y), where, images)))
            value, parts = kid_with_contributions(x, y)
            kids.append((value, _by_image(parts, where, images)))
        found |= {f"{name}_{extractor}_objects_{group}": of_sums(s, n) for name, s in (("fid", fids), ("kid", kids))}
    return found


def _by_image(parts: Parts, where: np.ndarray, images: int) -> Parts:
    """Contributions of objects, summed by their image: N - 1 times what leaving it out takes off the score."""
    left = len(where) - np.bincount(where, minlength=images)
    return tuple(np.bincount(where, weights=part, minlength=images) * (images - 1) / left for part in parts)


def _batched(items: list[tuple[int, np.ndarray]], size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

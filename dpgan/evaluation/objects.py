"""FID and KID of objects, by their size (supplement, table 1): crops of generated images against those of the photos.

An object is an instance of the dataset's instance maps or, where it has none, a connected piece of a countable class
(`thing` in the card), neighbours in eight directions. Its box is that of its pixels in the label map, its size their
number: more than 10000 pixels at 256x512 are large, less than 2500 small, and these bounds scale with the image's area.
Pieces of less than 100 pixels there show nothing, and are left out; the paper says nothing of them.

Each crop is resized to the extractor's square, bilinear and antialiased, whatever its aspect. FID falls with N: groups
compare across models, not with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dpgan.data.prepare import Split
from dpgan.evaluation.features import FeatureExtractor
from dpgan.evaluation.fid import fid, kid
from dpgan.evaluation.judges.base import resize
from dpgan.labels import Card

AREA = 256 * 512  # pixels of an image, to which the three bounds belong
LARGE, SMALL, LEAST = 10000, 2500, 100  # pixels of an object
GROUPS = ("all", "large", "medium", "small")
CODES = 1000  # an instance's pixels hold id * 1000 + k; what is below is no instance
CROPS = 64  # a batch


@dataclass(frozen=True)
class Objects:
    """M objects of a split, in the order of its images."""

    image: np.ndarray  # int [M], number of the image
    box: np.ndarray  # int [M, 4]: top, left, bottom, right; the last two behind the last pixel
    pixels: np.ndarray  # int [M]
    area: int  # pixels of an image
    source: str  # "instances" or "pieces"

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


def crop_features(extractor: FeatureExtractor, batches: Iterable[Tensor], objects: Objects) -> np.ndarray:
    """Features of every object's crop, in the order of `objects`: float64 [M, D].

    batches: float [B, 3, H, W] in [-1, 1], every image of the split, in order.
    """
    found = [extractor(crops).numpy() for crops in _crops(batches, objects, extractor.side)]
    return np.concatenate([np.empty((0, extractor.dimension)), *found])


def _crops(batches: Iterable[Tensor], objects: Objects, side: int) -> Iterator[Tensor]:
    waiting: list[Tensor] = []
    for number, image in enumerate(image for batch in batches for image in batch):
        for top, left, bottom, right in objects.box[objects.image == number]:
            waiting.append(resize(image[None, :, top:bottom, left:right], (side, side)))
            if len(waiting) == CROPS:
                yield torch.cat(waiting)
                waiting = []
    if waiting:
        yield torch.cat(waiting)


def object_scores(
    real: np.ndarray, fake: np.ndarray, objects: Objects, extractor: str, subsets: int = 100, subset_size: int = 100
) -> dict[str, float]:
    """`fid_` and `kid_EXTRACTOR_objects_GROUP` of crops, and `n_objects_GROUP`; a group of less than two has no score.

    real, fake: float64 [M, D], `crop_features` of the photos and of the images. KID as `fid.kid`, times 1000.
    """
    found: dict[str, float] = {}
    for group, chosen in objects.groups().items():
        found[f"n_objects_{group}"] = int(chosen.sum())
        if chosen.sum() >= 2:
            x, y = real[chosen], fake[chosen]
            found[f"fid_{extractor}_objects_{group}"] = fid(x, y)
            found[f"kid_{extractor}_objects_{group}"] = kid(x, y, subsets, subset_size)[0]
    return found

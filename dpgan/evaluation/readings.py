"""What a judge reads in images, against the label maps that they should show: IoU, mIoU, pixel accuracy.

All of it comes from three numbers an image and class, its *table*, which add up over any set of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from dpgan.evaluation.judges.base import Judge
from dpgan.labels import Card

HITS, TRUTH, PREDICTED = range(3)  # columns of a table
OBJECTS = (  # table 2: the object, human and vehicle groups of Cityscapes, whose mean is obj-mIoU
    "pole", "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
RATIO = "_of_real"

Measure = Callable[[np.ndarray], np.ndarray]  # tables [..., K, 3], summed over images -> percent [...]


def read(judge: Judge, images: Tensor, labels: np.ndarray, card: Card) -> np.ndarray:
    """`tables` of what a judge reads in images, float [B, 3, H, W] in [-1, 1], against uint8 [B, H, W].

    Where the judge reads at another size, the label maps are resized to it, nearest.
    """
    predicted = judge.predict(images).cpu().numpy()
    height, width = predicted.shape[1:]
    if labels.shape[1:] != (height, width):
        nearest = Image.Resampling.NEAREST
        labels = np.stack([np.asarray(Image.fromarray(one).resize((width, height), nearest)) for one in labels])
    return tables(predicted, labels, card.evaluated)


def tables(predicted: np.ndarray, labels: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """Pixels hit, of the truth, and predicted, by image and evaluated class: int64 [B, K, 3].

    predicted, labels: class indices, uint8 [B, H, W]; evaluated: int [K]. As in the Cityscapes protocol, only pixels
    whose true class is evaluated count; a prediction of another class there is a miss.
    """
    k = len(evaluated)
    slot = np.full(256, k)
    slot[evaluated] = np.arange(k)
    found = np.empty((len(labels), k, 3), dtype=np.int64)
    for one, said, truth in zip(found, predicted, labels, strict=True):
        counted = slot[truth] < k
        t, p = slot[truth[counted]], slot[said[counted]]
        for column, classes in ((HITS, t[t == p]), (TRUTH, t), (PREDICTED, p)):
            one[:, column] = np.bincount(classes, minlength=k + 1)[:k]
    return found


def class_iou(tables: np.ndarray) -> np.ndarray:
    """Intersection over union in percent, [..., K], of tables [..., K, 3] summed over images.

    NaN where a class is neither there nor predicted.
    """
    hits, truth, predicted = np.moveaxis(tables.astype(np.float64), -1, 0)
    union = truth + predicted - hits
    return np.where(union > 0, 100 * hits / np.maximum(union, 1), np.nan)


def mean_iou(tables: np.ndarray) -> np.ndarray:
    """mIoU in percent, [...]: the mean of `class_iou` without its NaNs; NaN where there is nothing else."""
    values = class_iou(tables)
    count = np.isfinite(values).sum(axis=-1)
    return np.where(count > 0, np.nansum(values, axis=-1) / np.maximum(count, 1), np.nan)


def accuracy(tables: np.ndarray) -> np.ndarray:
    """Pixel accuracy in percent, [...], over the pixels whose true class is evaluated; NaN without a pixel."""
    hits, truth, _ = np.moveaxis(tables.sum(axis=-2).astype(np.float64), -1, 0)
    return np.where(truth > 0, 100 * hits / np.maximum(truth, 1), np.nan)


def measures(judge: str, card: Card) -> dict[str, Measure]:
    """Every score that tables give, by its name, which holds the judge's.

    `miou_`; `obj_miou_` where the card evaluates all OBJECTS; `accuracy_`; `iou_JUDGE/CLASS`.
    """
    names = [card.classes[i].name for i in card.evaluated]
    found: dict[str, Measure] = {f"miou_{judge}": mean_iou, f"accuracy_{judge}": accuracy}
    if set(names) >= set(OBJECTS):
        rows = [names.index(name) for name in OBJECTS]
        found[f"obj_miou_{judge}"] = lambda tables: mean_iou(tables[..., rows, :])
    for row, name in enumerate(names):
        found[f"iou_{judge}/{name}"] = _iou_of(row)
    return found


def _iou_of(row: int) -> Measure:
    return lambda tables: class_iou(tables[..., row, :])


def scores(tables: np.ndarray, judge: str, card: Card) -> dict[str, float]:
    """`measures` of tables [N, K, 3], without classes that are neither there nor predicted."""
    total = tables.sum(axis=0)
    found = {name: float(measure(total)) for name, measure in measures(judge, card).items()}
    return {name: value for name, value in found.items() if np.isfinite(value) or "/" not in name}


def of_real(scores: Mapping[str, float], real: Mapping[str, float]) -> dict[str, float]:
    """mIoU, obj-mIoU and accuracy in percent of those of the real photos, which are what the judge can see at best."""
    means = ("miou_", "obj_miou_", "accuracy_")
    return {name + RATIO: 100 * scores[name] / real[name] for name in scores if name.startswith(means) and real[name]}


def right(tables: np.ndarray) -> np.ndarray:
    """Percent of each image's pixels that are read right, over its noise seeds: [S, N, K, 3] -> [N]; NaN where none
    counts."""
    sums = tables.sum(axis=(0, 2))
    return np.where(sums[:, TRUTH] > 0, 100 * sums[:, HITS] / np.maximum(sums[:, TRUTH], 1), np.nan)

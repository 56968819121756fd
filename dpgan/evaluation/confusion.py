"""What a judge reads in pictures, against the label maps that they should show: IoU, mIoU, pixel accuracy.

All of it comes from three numbers a picture and class, which add up over any set of pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dpgan.evaluation.judges.base import Judge
from dpgan.labels import Card

HITS, TRUTH, PREDICTED = range(3)  # of a row of counts
OBJECTS = (  # table 2: the object, human and vehicle groups of Cityscapes, whose mean is obj-mIoU
    "pole", "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
RATIO = "_of_real"


def count(predicted: np.ndarray, truth: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """Pixels by picture and evaluated class: int64 [B, K, 3], of which HITS, TRUTH, PREDICTED.

    predicted, truth: uint8 [B, H, W], class indices; evaluated: int [K], class indices. As in the Cityscapes protocol,
    only pixels whose true class is evaluated count; a prediction of another class there is a miss.
    """
    classes = len(evaluated)
    place = np.full(256, classes, dtype=np.uint8)
    place[evaluated] = np.arange(classes)
    counts = np.empty((len(truth), classes, 3), dtype=np.int64)
    for row, seen, true in zip(counts, place[predicted], place[truth], strict=True):
        counted = true < classes
        for column, pixels in ((HITS, true[counted & (seen == true)]), (TRUTH, true), (PREDICTED, seen[counted])):
            row[:, column] = np.bincount(pixels.ravel(), minlength=classes + 1)[:classes]
    return counts


def confusions(judge: Judge, batches: Iterable[tuple[Tensor, Tensor]], evaluated: np.ndarray) -> np.ndarray:
    """`count` of every picture: int64 [N, K, 3].

    batches: images float [B, 3, H, W] in [-1, 1] with label maps uint8 [B, H, W]. Where the judge reads at another
    size, the label maps are resized to it, nearest.
    """
    counts = []
    for images, labels in batches:
        predicted = judge.predict(images).cpu()
        if labels.shape != predicted.shape:  # nearest-exact: the pixel that Pillow takes
            labels = F.interpolate(labels[:, None].float(), predicted.shape[-2:], mode="nearest-exact")[:, 0].byte()
        counts.append(count(predicted.numpy(), labels.cpu().numpy(), evaluated))
    return np.concatenate(counts)


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union in percent, float64 [..., K], of counts [..., K, 3], added up over pictures.

    NaN, and to be left out of a mean (`np.nanmean`), where a class is neither there nor predicted.
    """
    union = counts[..., TRUTH] + counts[..., PREDICTED] - counts[..., HITS]
    return np.where(union > 0, 100.0 * counts[..., HITS] / np.maximum(union, 1), np.nan)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Pixels that are read right, in percent of those that count: float64 [...], of counts [..., K, 3]."""
    return 100.0 * counts[..., HITS].sum(-1) / np.maximum(counts[..., TRUTH].sum(-1), 1)


def scores(counts: np.ndarray, judge: str, card: Card) -> dict[str, float]:
    """Every score of counts [N, K, 3] by its name, which holds the judge's: in percent.

    `miou_`; `obj_miou_` where the card evaluates all OBJECTS; `accuracy_`; `iou_JUDGE/CLASS`, without classes that are
    neither there nor predicted.
    """
    total = counts.sum(axis=0)
    by_class = dict(zip((card.classes[i].name for i in card.evaluated), iou(total).tolist(), strict=True))
    found = {f"miou_{judge}": float(np.nanmean(list(by_class.values())))}
    if by_class.keys() >= set(OBJECTS):
        found[f"obj_miou_{judge}"] = float(np.nanmean([by_class[name] for name in OBJECTS]))
    found[f"accuracy_{judge}"] = float(accuracy(total))
    return found | {f"iou_{judge}/{name}": value for name, value in by_class.items() if np.isfinite(value)}


def of_real(scores: Mapping[str, float], real: Mapping[str, float]) -> dict[str, float]:
    """mIoU, obj-mIoU and accuracy in percent of those of the real photos, which are what the judge can see at best."""
    means = ("miou_", "obj_miou_", "accuracy_")
    return {name + RATIO: 100 * scores[name] / real[name] for name in scores if name.startswith(means) and real[name]}

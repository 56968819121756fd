"""What a judge reads in images, image by image, and the scores of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dpgan.labels import Card


@torch.no_grad()
def read(judge: nn.Module, images: Tensor, labels: np.ndarray, card: Card) -> np.ndarray:
    """`tables` of what a judge reads in images, float [B, 3, H, W] in [-1, 1]; it never predicts a void class."""
    device = next(judge.parameters()).device
    barred = torch.from_numpy(card.void).to(device)
    logits = judge(images.to(device)).masked_fill(barred[:, None, None], -torch.inf)
    return tables(logits.argmax(1).cpu().numpy(), labels, card.evaluated)


def tables(predicted: np.ndarray, labels: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """Pixels hit, of the truth, and predicted, by image and evaluated class: int64 [B, K, 3].

    predicted, labels: class indices [B, H, W]. As in the Cityscapes protocol, only pixels whose true class is evaluated
    count.
    """
    k = len(evaluated)
    slot = np.full(256, k)
    slot[evaluated] = np.arange(k)
    found = np.empty((len(labels), k, 3), dtype=np.int64)
    for one, said, truth in zip(found, predicted, labels, strict=True):
        counted = slot[truth] < k
        t, p = slot[truth[counted]], slot[said[counted]]
        for column, classes in enumerate((t[t == p], t, p)):
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

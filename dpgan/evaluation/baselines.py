"""The floor: what a label map alone is worth, with no model at all."""

from __future__ import annotations

import numpy as np


def class_mean_colors(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean colour of each class: float64 [C, 3] in 0..255, in one pass over the images.

    images: uint8 [N, H, W, 3]; labels: uint8 [N, H, W], class indices; both may be memory maps.
    A class without a pixel gets the mean of all pixels.
    """
    sums = np.zeros((num_classes, 3))
    counts = np.zeros(num_classes)
    for image, label in zip(images, labels, strict=True):
        flat = label.ravel()
        counts += np.bincount(flat, minlength=num_classes)
        for channel in range(3):
            sums[:, channel] += np.bincount(flat, image[..., channel].ravel(), num_classes)
    everything = sums.sum(axis=0) / counts.sum()
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], everything)


def paint(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Every pixel in its class's colour: uint8 [..., H, W] -> uint8 [..., H, W, 3]."""
    return np.rint(colors).astype(np.uint8)[labels]

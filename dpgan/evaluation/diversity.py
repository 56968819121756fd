"""How much the images of one label map differ from noise to noise."""

from __future__ import annotations

import numpy as np


def diversity(features: np.ndarray) -> np.ndarray:
    """Mean distance of two images of a label map under different noises, by label map: float64 [N], in percent.

    features: [S, N, D], S >= 2 noises of N label maps. The distance is 1 - cosine, 0 to 100 (to 200 where features may
    be negative). Cosine, and not L2: as in LPIPS (Zhang et al., 2018, equation 1) features count by their direction,
    so the value has no unit and does not grow with the extractor's scale or dimension.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    seeds = len(unit)
    # |sum of unit vectors|^2 = S + the sum of all cosines of two different ones.
    cosines = ((unit.sum(axis=0) ** 2).sum(axis=-1) - seeds) / (seeds * (seeds - 1))
    return 100 * (1 - cosines)

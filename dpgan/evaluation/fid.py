"""Distances between two sets of feature vectors: FID and KID, in numpy float64.

float32 covariances alone move FID by half a point, so nothing here is computed in less than float64.
"""

from __future__ import annotations

import numpy as np


def _root(x: np.ndarray) -> np.ndarray:
    """A matrix R, [min(N, D), D], with R^T R the covariance (N-1) of the rows of x [N, D]."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to two sets (Heusel et al., 2017, equation 6).

    |mean x - mean y|^2 + tr(Sx) + tr(Sy) - 2 tr((Sx Sy)^1/2), for features [N, D] and [M, D] with
    N, M >= 2. The last trace is the sum of the singular values of Ry Rx^T for any roots S = R^T R:
    exact also for singular covariances (N <= D), where a matrix square root loses half its digits.

    FID falls with N on the same distribution: compare only scores of the same N. NaN where a feature is not finite.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")  # numpy's singular values would raise
    root_x, root_y = _root(x), _root(y)
    mean = x.mean(axis=0) - y.mean(axis=0)
    cross = np.linalg.svd(root_y @ root_x.T, compute_uv=False).sum()
    # A squared distance: below zero is rounding.
    return max(float((mean**2).sum() + (root_x**2).sum() + (root_y**2).sum() - 2 * cross), 0.0)


def kid(x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 100, seed: int = 0) -> tuple[float, float]:
    """Kernel distance **times 1000**: mean and standard deviation over random subsets of both sets.

    The unbiased squared MMD with the kernel (a.b / D + 1)^3 (Binkowski et al., 2018, section 3), for
    features [N, D] and [M, D]. Unbiased: around 0, and half of the time below it, where both sets have
    the same distribution, whatever N is. A subset is drawn without replacement, and holds at most as
    many vectors as the smaller set.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    generator = np.random.default_rng(seed)
    size = min(subset_size, len(x), len(y))
    values = [
        _mmd2(x[generator.permutation(len(x))[:size]], y[generator.permutation(len(y))[:size]]) for _ in range(subsets)
    ]
    return 1000 * float(np.mean(values)), 1000 * float(np.std(values))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of two sets of n vectors each (Gretton et al., 2012, equation 3)."""
    n, dimension = x.shape
    xx, yy, xy = ((a @ b.T / dimension + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return float(within - 2 * xy.mean())

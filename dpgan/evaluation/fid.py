"""Distances between two sets of feature vectors: FID and KID, in numpy float64.

float32 covariances alone move FID by half a point, so nothing here is computed in less than float64.
"""

from __future__ import annotations

import numpy as np


def _factors(x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Q and R, [N, K] and [K, D], K = min(N, D), with QR the centred rows of x [N, D]; Q None where it is the identity.

    R^T R / (N-1) is the covariance.
    """
    centred = x - x.mean(axis=0)
    return (None, centred) if len(x) <= x.shape[1] else np.linalg.qr(centred)


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
    root_x, root_y = (_factors(z)[1] / np.sqrt(len(z) - 1) for z in (x, y))
    mean = x.mean(axis=0) - y.mean(axis=0)
    cross = np.linalg.svd(root_y @ root_x.T, compute_uv=False).sum()
    # A squared distance: below zero is rounding.
    return max(float((mean**2).sum() + (root_x**2).sum() + (root_y**2).sum() - 2 * cross), 0.0)


def fid_contributions(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each vector adds to `fid`, to first order: float64 [N] and [M], each of mean 0.

    A set in which x_i weighs w_i / N has the FID fid(x, y) + mean((w - 1) * contributions), to first order in w - 1:
    the infinitesimal jackknife (Efron, 1982, chapter 6). The derivative of the last trace with respect to Sx is the
    optimal transport T from one Gaussian to the other, halved; x_i^T T x_i is on the diagonal of |Ry Rx^T|.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    (q_x, r_x), (q_y, r_y) = _factors(x), _factors(y)
    scale = np.sqrt(len(x) * len(y))
    u, s, v = np.linalg.svd(r_y @ r_x.T / scale, full_matrices=False)
    left, right = ((basis if q is None else q @ basis) for q, basis in ((q_y, u), (q_x, v.T)))
    mean = x.mean(axis=0) - y.mean(axis=0)
    sides = ((x, mean, right), (y, -mean, left))
    raw = [
        2 * (z - z.mean(axis=0)) @ direction + ((z - z.mean(axis=0)) ** 2).sum(axis=1) - len(z) * basis**2 @ s
        for z, direction, basis in sides
    ]
    return raw[0] - raw[0].mean(), raw[1] - raw[1].mean()


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


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of two sets of n vectors each (Gretton et al., 2012, equation 3)."""
    n = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def kid_contributions(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each vector adds to `kid`, to first order: float64 [N] and [M], each of mean 0, **times 1000**.

    The first-order part of the U-statistic (Hoeffding, 1948): twice the mean of the kernel over the vector's own set
    less that over the other one. Two sets of one size are taken as lists over the same label maps: x_i and y_i come
    and go together, so their kernel, which is one of N^2, counts half for each.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    between = _kernel(x, y)
    if len(x) == len(y):
        between[np.diag_indices(len(x))] /= 2
    raw = []
    for z, others in ((x, between.mean(axis=1)), (y, between.mean(axis=0))):
        within = _kernel(z, z)
        raw.append(2000 * ((within.sum(axis=1) - within.diagonal()) / (len(z) - 1) - others))
    return raw[0] - raw[0].mean(), raw[1] - raw[1].mean()

"""Distances between two sets of feature vectors: FID and KID, in numpy float64.

float32 covariances alone move FID by half a point, so nothing here is computed in less than float64.
"""

from __future__ import annotations

import numpy as np

_ROWS_AT_ONCE = 4096  # of features: no other copy of a large set is made


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _root(x: np.ndarray) -> np.ndarray:
    """R [K, D], K = min(N, D): R^T R / (N-1) is the covariance of x [N, D]. The centred rows of x if N <= D."""
    mean = x.mean(axis=0)
    if len(x) <= x.shape[1]:
        return np.asarray(x - mean)
    root = np.empty((0, x.shape[1]))
    for rows in _blocks(len(x), _ROWS_AT_ONCE):
        root = np.asarray(np.linalg.qr(np.concatenate([root, x[rows] - mean]), mode="r"))
    return root


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to two sets (Heusel et al., 2017, equation 6).

    |mean x - mean y|^2 + tr(Sx) + tr(Sy) - 2 tr((Sx Sy)^1/2), for features [N, D] and [M, D] with
    N, M >= 2. The last trace is the sum of the singular values of Ry Rx^T for any roots S = R^T R:
    exact also for singular covariances (N <= D), where a matrix square root loses half its digits.

    FID falls with N on the same distribution: compare only scores of the same N. NaN if a feature is not finite.
    """
    x, y = (np.asarray(z, dtype=np.float64) for z in (x, y))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")  # numpy's singular values would raise
    root_x, root_y = (_root(z) / np.sqrt(len(z) - 1) for z in (x, y))
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
    x, y = (np.asarray(z, dtype=np.float64) for z in (x, y))
    root_x, root_y = _root(x), _root(y)
    u, s, v = np.linalg.svd(root_y @ root_x.T / np.sqrt(len(x) * len(y)), full_matrices=False)
    mean = x.mean(axis=0) - y.mean(axis=0)
    return _fid_side(x, root_x, v.T, s, mean), _fid_side(y, root_y, u, s, -mean)


def _fid_side(z: np.ndarray, root: np.ndarray, basis: np.ndarray, s: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The contributions of one set. basis: its singular vectors, of the singular values s, in the rows of its root."""
    centre, raw = z.mean(axis=0), np.empty(len(z))
    # Coordinates of z in the basis. Directions in which z does not vary have none.
    to_basis = None if len(z) == len(root) else np.linalg.pinv(root, rcond=1e-12) @ basis
    for rows in _blocks(len(z), _ROWS_AT_ONCE):
        centred = z[rows] - centre
        coordinates = basis[rows] if to_basis is None else centred @ to_basis
        raw[rows] = 2 * centred @ mean + (centred**2).sum(axis=1) - len(z) * coordinates**2 @ s
    return raw - raw.mean()


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """Kernel distance **times 1000** of features [N, D] and [M, D], with N, M >= 2.

    The unbiased squared MMD (Gretton et al., 2012, equation 3) of the whole sets, with the kernel (a.b / D + 1)^3
    (Binkowski et al., 2018, section 3). Unbiased: around 0, and half of the time below it, if both sets have one
    distribution, whatever N is. The mean over random subsets that others print has the same expectation.
    """
    return kid_with_contributions(x, y)[0]


def kid_with_contributions(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """`kid`, and what each vector adds to it to first order: float64 [N] and [M], of mean 0, **times 1000** as well.

    The first-order part of the U-statistic (Hoeffding, 1948): twice the mean of the kernel over the vector's own set
    less that over the other one. Two sets of one size are taken as lists over the same label maps: x_i and y_i come
    and go together, so their kernel, which is one of N^2, counts half for each.
    """
    x, y = (np.asarray(z, dtype=np.float64) for z in (x, y))
    n, m = len(x), len(y)
    own_x, own_y = (_sums_within(z) / (len(z) - 1) for z in (x, y))
    others_x, others_y = _sums_between(x, y)
    value = own_x.mean() + own_y.mean() - 2 * others_x.sum() / (n * m)
    if n == m:
        paired = _kernel_of_pairs(x, y) / 2
        others_x, others_y = others_x - paired, others_y - paired
    raw_x, raw_y = 2000 * (own_x - others_x / m), 2000 * (own_y - others_y / n)
    return 1000 * float(value), (raw_x - raw_x.mean(), raw_y - raw_y.mean())


# Kernels are summed in blocks of rows: 36,000 vectors have 1.3e9 of them, 10 GB.
_KERNELS_AT_ONCE = 2**22


def _cubed(products: np.ndarray, dimension: int) -> np.ndarray:
    """The kernel, in place, from products of vectors."""
    products /= dimension
    products += 1
    products *= products * products
    return products


def _kernel_of_pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x_i, y_i): [N]."""
    return _cubed(np.einsum("nd,nd->n", x, y), x.shape[1])


def _sums_within(x: np.ndarray) -> np.ndarray:
    """Sum over j != i of k(x_i, x_j): [N]. The kernel is symmetric: each block begins at its diagonal."""
    sums = -_kernel_of_pairs(x, x)
    for rows in _blocks(len(x), _KERNELS_AT_ONCE // len(x) + 1):
        block = _cubed(x[rows] @ x[rows.start :].T, x.shape[1])
        sums[rows] += block.sum(axis=1)
        sums[rows.stop :] += block[:, rows.stop - rows.start :].sum(axis=0)
    return sums


def _sums_between(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(x_i, y_j) over j, [N], and over i, [M]."""
    over_y, over_x = np.zeros(len(x)), np.zeros(len(y))
    for rows in _blocks(len(x), _KERNELS_AT_ONCE // len(y) + 1):
        block = _cubed(x[rows] @ y.T, x.shape[1])
        over_y[rows] = block.sum(axis=1)
        over_x += block.sum(axis=0)
    return over_y, over_x

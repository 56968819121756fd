"""The sample order, and every random draw of training, as pure functions of (seed, position).

A *position* counts the real images of a run from 0, over all workers: position p is sample p mod n of epoch
p div n. Workers take slices of the same positions, so their number changes nothing in what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

# One stream a kind of draw: streams never share random numbers.
_ORDER, _FLIP, _CROP, _NOISE, _LABELMIX, _HOLDOUT, _SHIFT = range(7)


def _rng(seed: int, stream: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *key])


def split_holdout(seed: int, n: int, holdout: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, hold-out) sample indices of a training split with n samples, both sorted."""
    chosen = _rng(seed, _HOLDOUT).permutation(n)
    return np.sort(chosen[holdout:]), np.sort(chosen[:holdout])


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return _rng(seed, _ORDER, epoch).permutation(n)


def sample_at(seed: int, position: int, n: int) -> int:
    """Which of n samples stands at a position; every epoch holds each sample once."""
    return int(_epoch(seed, position // n, n)[position % n])


def cut(whole: range, parts: int) -> list[range]:
    """`whole` in contiguous parts whose lengths differ by at most one."""
    edges = [whole.start + len(whole) * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def positions(step: int, batch: int, images: int, accumulate: int, rank: int, workers: int) -> list[range]:
    """The positions that a worker takes at a step, one range a micro-batch.

    `batch`, and `images`, where the last batch ends, count over all workers. The batch is cut into `accumulate`
    micro-batches first and each of them over the workers then, so that who shares a micro-batch, whose statistics
    BatchNorm takes, does not depend on the number of workers.
    """
    whole = range(step * batch, min((step + 1) * batch, images))
    return [cut(micro, workers)[rank] for micro in cut(whole, accumulate)]


def flip_at(seed: int, position: int) -> bool:
    """Whether the sample at a position is mirrored left-right."""
    return bool(_rng(seed, _FLIP, position).integers(2))


def crop_at(seed: int, position: int, size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Top and left edge, in pixels, of a `crop` (height, width) taken from an image of `size`."""
    y, x = (_rng(seed, _CROP, position).integers(whole - part + 1) for whole, part in zip(size, crop, strict=True))
    return int(y), int(x)


def noise_at(seed: int, chosen: Sequence[int], channels: int, draw: int = 0) -> np.ndarray:
    """Unit Gaussian noise float32 [len(chosen), channels]; `draw` numbers the draws at one position."""
    rows = [_rng(seed, _NOISE, draw, p).standard_normal(channels, dtype=np.float32) for p in chosen]
    return np.stack(rows)


def shift_at(seed: int, step: int, limit: int) -> tuple[int, int]:
    """Rows and columns, up to `limit`, by which a step shifts what its perceptual loss sees."""
    rows, columns = _rng(seed, _SHIFT, step).integers(limit + 1, size=2)
    return int(rows), int(columns)


def labelmix_table(seed: int, step: int, num_classes: int) -> np.ndarray:
    """bool [C]: which classes LabelMix takes from the real image, one draw a class for the whole batch."""
    return _rng(seed, _LABELMIX, step).integers(2, size=num_classes).astype(bool)

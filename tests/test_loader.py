"""The DALI loader, held against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpgan.data import order
from dpgan.data.loader import Batch, Source, batches

N, SIZE = 12, (32, 48)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, *SIZE, 3), dtype=np.uint8)
    return images, rng.integers(0, 35, (N, *SIZE), dtype=np.uint8)


def load(
    arrays: tuple[np.ndarray, np.ndarray],
    rank: int = 0,
    workers: int = 1,
    steps: range = range(5),
    crop: tuple[int, int] | None = None,
    total: int = 20,
    accumulate: int = 1,
) -> list[Batch]:
    samples = np.arange(1, N)  # one pair is held out
    source = Source(
        *arrays, samples, seed=5, batch=4, total=total, accumulate=accumulate, rank=rank, workers=workers, steps=steps,
        flip=True, crop=crop,
    )  # fmt: skip
    return list(batches(source, torch.device("cpu")))


@pytest.mark.parametrize("crop", [None, (16, 32)])
def test_pixels_are_those_of_numpy(arrays: tuple[np.ndarray, np.ndarray], crop: tuple[int, int] | None) -> None:
    flipped = 0
    for batch in load(arrays, crop=crop):
        assert len(batch.images) == 4
        for image, label, position in zip(batch.images, batch.labels, batch.positions, strict=True):
            sample = 1 + order.sample_at(5, position, N - 1)
            h, w = crop or SIZE
            y, x = order.crop_at(5, position, SIZE, (h, w))
            pixels, ids = (a[sample][y : y + h, x : x + w] for a in arrays)
            if order.flip_at(5, position):
                pixels, ids = pixels[:, ::-1], ids[:, ::-1]
                flipped += 1
            expected = np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 0)
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
            np.testing.assert_array_equal(label.numpy(), ids)
    assert 0 < flipped < 20


def test_workers_load_the_batches_of_one(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """Three of them, with shares of 1, 1 and 2; the last batch holds three, one each."""
    alone = load(arrays, total=19)
    assert [len(batch.images) for batch in alone] == [4, 4, 4, 4, 3]
    parts = [load(arrays, rank, 3, total=19) for rank in range(3)]
    assert [[len(batch.images) for batch in part] for part in parts] == [[1] * 5, [1] * 5, [2] * 4 + [1]]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(whole.images, torch.cat([share.images for share in shares]))
        assert torch.equal(whole.labels, torch.cat([share.labels for share in shares]))


def test_a_share_names_its_micro_batches(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    whole = load(arrays)[0]
    first, second = (load(arrays, rank, 2, accumulate=2)[0] for rank in range(2))
    assert (first.positions, second.positions) == ([0, 2], [1, 3])
    assert first.sizes == second.sizes == [1, 1]
    assert torch.equal(second.images, whole.images[[1, 3]])


def test_a_later_start_gives_the_same_batches(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    late = load(arrays, steps=range(3, 5))
    assert [b.step for b in late] == [3, 4]
    assert torch.equal(late[0].images, load(arrays)[3].images)

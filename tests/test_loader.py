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
) -> list[Batch]:
    samples = np.arange(1, N)  # one pair is held out
    source = Source(*arrays, samples, seed=5, batch=4, rank=rank, workers=workers, steps=steps, flip=True, crop=crop)
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


def test_two_workers_load_the_batches_of_one(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    halves = zip(load(arrays, 0, 2), load(arrays, 1, 2), strict=True)
    for whole, (first, second) in zip(load(arrays), halves, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.labels, torch.cat([first.labels, second.labels]))


def test_a_later_start_gives_the_same_batches(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    late = load(arrays, steps=range(3, 5))
    assert [b.step for b in late] == [3, 4]
    assert torch.equal(late[0].images, load(arrays)[3].images)

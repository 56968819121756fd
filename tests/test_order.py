"""The sample order and the draws: pure, complete, and the same however many workers take them."""

from __future__ import annotations

import numpy as np
import pytest

from dpgan.data import order


def test_a_shift_is_within_its_limit_and_drawn_by_the_step() -> None:
    drawn = [order.shift_at(0, step, 16) for step in range(200)]
    assert {axis for shift in drawn for axis in shift} == set(range(17))
    assert drawn == [order.shift_at(0, step, 16) for step in range(200)]
    assert order.shift_at(0, 5, 0) == (0, 0)


def test_every_epoch_holds_each_sample_once() -> None:
    for epoch in range(3):
        seen = [order.sample_at(7, epoch * 10 + i, 10) for i in range(10)]
        assert sorted(seen) == list(range(10))
    first, second = ([order.sample_at(7, e * 10 + i, 10) for i in range(10)] for e in (0, 1))
    assert first != second


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("step", "expected"), [(3, range(24, 32)), (4, range(32, 38))])  # 38 images, the last six
def test_workers_share_each_micro_batch(workers: int, accumulate: int, step: int, expected: range) -> None:
    """Without gap or overlap, evenly, and the micro-batches are the same however many workers share them."""
    shares = [order.positions(step, 8, 38, accumulate, rank, workers) for rank in range(workers)]
    micro_batches = [[p for part in parts for p in part] for parts in zip(*shares, strict=True)]
    assert micro_batches == [list(part) for part in order.cut(expected, accumulate)]
    assert [p for micro in micro_batches for p in micro] == list(expected)
    for parts in zip(*shares, strict=True):
        assert min(map(len, parts)) >= 1
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_noise_depends_on_the_position_only() -> None:
    whole = order.noise_at(0, range(10, 18), 5)
    parts = np.concatenate([order.noise_at(0, range(10, 13), 5), order.noise_at(0, range(13, 18), 5)])
    np.testing.assert_array_equal(whole, parts)
    assert whole.dtype == np.float32
    assert not np.array_equal(whole, order.noise_at(0, range(10, 18), 5, draw=1))
    assert not np.array_equal(whole, order.noise_at(1, range(10, 18), 5))


def test_holdout_is_disjoint_and_complete() -> None:
    training, held_out = order.split_holdout(0, 50, 8)
    assert len(held_out) == 8
    assert sorted([*training, *held_out]) == list(range(50))


def test_crops_stay_inside_and_reach_the_edges() -> None:
    corners = {order.crop_at(0, p, (10, 12), (8, 8)) for p in range(400)}
    assert {y for y, _ in corners} == {0, 1, 2}
    assert {x for _, x in corners} == {0, 1, 2, 3, 4}


def test_draws_are_even() -> None:
    flips = np.mean([order.flip_at(3, p) for p in range(2000)])
    mixed = np.mean([order.labelmix_table(3, step, 20) for step in range(200)])
    assert 0.45 < flips < 0.55
    assert 0.45 < mixed < 0.55

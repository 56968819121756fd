"""Intervals hold what they promise: known by simulation, where the truth is known from many data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from dpgan.evaluation.fid import fid, fid_contributions, kid, kid_contributions
from dpgan.evaluation.intervals import Estimate, compare, draws, load_estimates, of_sums, of_tables, save_estimates
from dpgan.evaluation.readings import accuracy, mean_iou

Data = tuple[np.ndarray, np.ndarray]


@lru_cache
def mixing(dimension: int) -> np.ndarray:
    """Skewed features with most of their variance in few directions."""
    directions = np.linalg.qr(np.random.default_rng(9).normal(size=(dimension, dimension)))[0]
    return directions.T / np.arange(1, dimension + 1)[:, None] ** 0.5


def features(z: np.ndarray) -> np.ndarray:
    return np.maximum(z @ mixing(z.shape[1]), 0) ** 1.3


def painted(rng: np.random.Generator, z: np.ndarray, spread: float) -> np.ndarray:
    """Images of the label maps of photos z; at a spread of 0.71 they are distributed as the photos are."""
    return features(0.7 * z + spread * rng.normal(size=z.shape))


def pairs(rng: np.random.Generator, n: int, dimension: int, spread: float = 0.3) -> Data:
    """Features of n photos and of images of the same label maps."""
    z = rng.normal(size=(n, dimension))
    return features(z), painted(rng, z, spread)


def fid_estimate(x: np.ndarray, y: np.ndarray) -> Estimate:
    return of_sums([fid(x, y)], [fid_contributions(x, y)], len(x))


def kid_estimate(x: np.ndarray, y: np.ndarray) -> Estimate:
    return of_sums([kid(x, y, 1, len(x))[0]], [kid_contributions(x, y)], len(x))


def read_tables(rng: np.random.Generator, n: int, skill: float = 0.7) -> np.ndarray:
    """[1, n, 4, 3]: scenes in which classes are there or not, and images that are harder or easier to read."""
    truth = rng.integers(1, 200, (n, 4)) * (rng.random((n, 4)) < [1, 0.9, 0.5, 0.3])
    ease = np.clip(skill + 0.15 * rng.normal(size=(n, 1)), 0.05, 0.95)
    hits = rng.binomial(truth, ease)
    predicted = hits + rng.binomial(30, 1 - ease, (n, 4))
    return np.stack([hits, truth, predicted], axis=-1)[None]


def tables_estimate(tables: np.ndarray) -> Estimate:
    return of_tables(tables, mean_iou)


CASES: dict[str, tuple[Callable[[np.random.Generator], tuple[np.ndarray, ...]], Callable[..., Estimate]]] = {
    "fid, N > D": (lambda rng: pairs(rng, 100, 20), fid_estimate),
    "fid, N < D": (lambda rng: pairs(rng, 50, 100), fid_estimate),
    "kid": (lambda rng: pairs(rng, 60, 20, 0.25), kid_estimate),
    "miou": (lambda rng: (read_tables(rng, 80),), tables_estimate),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_the_expected_score_as_often_as_they_say(case: str) -> None:
    draw, estimate = CASES[case]
    rng = np.random.default_rng(1)
    found = [estimate(*draw(rng)) for _ in range(250)]
    truth = np.mean([score.value for score in found])
    covered = np.mean([low < truth < high for low, high in (score.interval for score in found)])
    assert 0.90 <= covered <= 0.99
    widths = [score.interval[1] - score.interval[0] for score in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std([score.value for score in found]), rel=0.2)


def test_resampled_fids_themselves_would_miss_it() -> None:
    """Why contributions: with replacement, repeated images narrow the distribution, and FID rises."""
    rng = np.random.default_rng(2)
    x, y = pairs(rng, 50, 100, 0.5)
    naive = [fid(x[i], y[i]) for i in (rng.integers(50, size=50) for _ in range(100))]
    ours = fid_estimate(x, y)
    assert np.percentile(naive, 2.5) > ours.value
    assert ours.interval[0] < ours.value < ours.interval[1]


def test_where_both_sets_have_one_distribution_the_interval_is_wide_but_holds() -> None:
    rng = np.random.default_rng(3)
    found = [fid_estimate(*(features(rng.normal(size=(50, 100))) for _ in range(2))) for _ in range(100)]
    truth = np.mean([score.value for score in found])
    assert np.mean([low < truth < high for low, high in (score.interval for score in found)]) >= 0.95


def two_models(rng: np.random.Generator, n: int, spreads: tuple[float, float]) -> tuple[Estimate, Estimate]:
    """FIDs of two models of the same label maps."""
    z = rng.normal(size=(n, 20))
    ours, theirs = (fid_estimate(features(z), painted(rng, z, spread)) for spread in spreads)
    return ours, theirs


def test_equal_models_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(4)
    verdicts = [compare(*two_models(rng, 80, (0.4, 0.4)), lower_is_better=True).verdict for _ in range(250)]
    assert 0.02 <= 1 - verdicts.count("cannot tell") / 250 <= 0.09
    read = [
        compare(*(tables_estimate(read_tables(rng, 80)) for _ in range(2)), lower_is_better=False) for _ in range(250)
    ]
    assert 0.02 <= np.mean([one.verdict != "cannot tell" for one in read]) <= 0.09


def test_real_differences_are_found_and_the_right_way_round() -> None:
    rng = np.random.default_rng(5)
    found = [two_models(rng, 80, (0.6, 0.2)) for _ in range(40)]
    verdicts = [compare(ours, theirs, lower_is_better=True).verdict for ours, theirs in found]
    assert verdicts.count("better") >= 38
    assert compare(*found[0][::-1], lower_is_better=True).verdict == "worse"
    skilled, other = (tables_estimate(read_tables(rng, 80, skill)) for skill in (0.8, 0.6))
    assert compare(skilled, other, lower_is_better=False).verdict == "better"


def test_pairing_makes_the_difference_sharper_than_the_scores() -> None:
    """Two models that find the same label maps hard: scores move with the label maps, the difference does not."""
    tables = read_tables(np.random.default_rng(6), 80)
    worse = tables.copy()
    worse[..., 0] = worse[..., 0] * 0.95
    difference = compare(tables_estimate(tables), tables_estimate(worse), lower_is_better=False)
    low, high = tables_estimate(tables).interval
    assert difference.verdict == "better"
    assert difference.high - difference.low < 0.2 * (high - low)


def test_a_comparison_needs_the_same_images() -> None:
    ours, theirs = (tables_estimate(read_tables(np.random.default_rng(7), n)) for n in (20, 21))
    with pytest.raises(ValueError, match="the same label maps, not 20 against 21"):
        compare(ours, theirs, lower_is_better=False)


def test_the_same_images_give_the_same_interval() -> None:
    x, y = pairs(np.random.default_rng(8), 30, 10)
    assert fid_estimate(x, y).interval == fid_estimate(x, y).interval
    np.testing.assert_array_equal(draws(30), draws.__wrapped__(30))
    assert not np.array_equal(draws(30), draws(30, seed=1))
    assert (draws(30).sum(axis=1) == 30).all()


def test_seeds_give_a_mean_and_a_deviation() -> None:
    tables = np.concatenate([read_tables(np.random.default_rng(seed), 40) for seed in range(3)])
    score = of_tables(tables, accuracy)
    single = [of_tables(tables[[seed]], accuracy) for seed in range(3)]
    assert score.value == pytest.approx(np.mean([one.value for one in single]))
    assert score.deviation == pytest.approx(np.std([one.value for one in single], ddof=1))
    record = score.record()
    assert (record["n"], record["seeds"]) == (40, 3)
    assert record["low"] < record["value"] < record["high"]
    assert "deviation" not in single[0].record()


def test_a_class_that_some_resamples_lack() -> None:
    tables = read_tables(np.random.default_rng(9), 30)[:, :, [0]]
    tables[:, 1:] = 0
    low, high = of_tables(tables, mean_iou).interval
    assert low == high == pytest.approx(mean_iou(tables.sum(axis=1))[0])


def test_estimates_come_back_from_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    tables = np.concatenate([read_tables(rng, 30), read_tables(rng, 30)])
    scores = {"fid_lite0": fid_estimate(*pairs(rng, 30, 10)), "iou_trained/road": tables_estimate(tables)}
    save_estimates(scores, tmp_path / "e.safetensors")
    back = load_estimates(tmp_path / "e.safetensors")
    assert [score.record() for score in back.values()] == [score.record() for score in scores.values()]
    assert compare(back["fid_lite0"], scores["fid_lite0"], True).verdict == "cannot tell"

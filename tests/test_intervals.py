"""Intervals hold what they promise: known by simulation, where the truth is known from many data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from dpgan.errors import UserError
from dpgan.evaluation.fid import fid, fid_contributions, kid_with_contributions
from dpgan.evaluation.intervals import LEVEL, Estimate, compare, load_estimates, of_sums, of_tables, save_estimates
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
    return of_sums([(fid(x, y), fid_contributions(x, y))], len(x))


def kid_estimate(x: np.ndarray, y: np.ndarray) -> Estimate:
    return of_sums([kid_with_contributions(x, y)], len(x))


def read_tables(rng: np.random.Generator, n: int, skill: float = 0.7) -> np.ndarray:
    """[1, n, 4, 3]: scenes in which classes are there or not, and images that are harder or easier to read."""
    truth = rng.integers(1, 200, (n, 4)) * (rng.random((n, 4)) < [1, 0.9, 0.5, 0.3])
    ease = np.clip(skill + 0.15 * rng.normal(size=(n, 1)), 0.05, 0.95)
    hits = rng.binomial(truth, ease)
    predicted = hits + rng.binomial(30, 1 - ease, (n, 4))
    return np.stack([hits, truth, predicted], axis=-1)[None]


def tables_estimate(tables: np.ndarray) -> Estimate:
    return of_tables(tables, {"miou": mean_iou})["miou"]


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
    with pytest.raises(ValueError, match="the same label maps, not 20 and 21"):
        compare(ours, theirs, lower_is_better=False)


def test_sets_of_other_sizes_are_independent() -> None:
    """The ceiling's: fewer training photos than validation photos."""
    x, y = np.array([1.0, -1, 2, -2]), np.array([3.0, -3])
    both = of_sums([(5.0, (x, y))], 4)
    assert (both.parts**2).sum() == pytest.approx(x.var(ddof=1) / 4 + y.var(ddof=1) / 2)
    assert both.interval[0] < 5 < both.interval[1]


def test_a_mean_has_the_interval_of_student() -> None:
    values = np.random.default_rng(0).normal(size=40)
    score = of_sums([(float(values.mean()), (values - values.mean(),))], 40)
    expected = stats.t.interval(LEVEL, 39, values.mean(), stats.sem(values))
    # Its degrees of freedom are estimated: of a normal sample two thirds.
    assert np.ptp(score.interval) == pytest.approx(np.ptp(expected), rel=0.05)
    assert np.ptp(score.interval) > np.ptp(expected)


def test_seeds_give_a_mean_and_a_deviation() -> None:
    tables = np.concatenate([read_tables(np.random.default_rng(seed), 40) for seed in range(3)])
    score = of_tables(tables, {"accuracy": accuracy})["accuracy"]
    single = [of_tables(tables[[seed]], {"accuracy": accuracy})["accuracy"] for seed in range(3)]
    assert score.value == pytest.approx(np.mean([one.value for one in single]))
    assert score.deviation == pytest.approx(np.std([one.value for one in single], ddof=1))
    record = score.record()
    assert (record["n"], record["seeds"]) == (40, 3)
    assert record["low"] < record["value"] < record["high"]
    assert "deviation" not in single[0].record()


def test_parts_are_what_the_score_loses_without_a_label_map() -> None:
    tables = read_tables(np.random.default_rng(9), 30)
    score = tables_estimate(tables)
    without = [mean_iou(np.delete(tables[0], i, axis=0).sum(axis=0)) for i in range(30)]
    np.testing.assert_allclose(score.parts, np.sqrt(29 / 30) * (score.value - np.array(without)))


def in_label_maps(hits: list[int], n: int = 30) -> Estimate:
    """IoU of a class with 100 pixels in the first label maps, so many of them hit, and in no other."""
    tables = np.zeros((1, n, 1, 3), dtype=np.int64)
    tables[0, : len(hits), 0] = [(h, 100, h) for h in hits]
    return tables_estimate(tables)


def test_a_class_in_one_label_map_says_nothing() -> None:
    ours, theirs = in_label_maps([90]), in_label_maps([10])
    assert ours.interval == (0, 100)
    found = compare(ours, theirs, lower_is_better=False)
    assert (found.difference, found.low, found.high, found.verdict) == (80, -100, 100, "cannot tell")


def test_few_label_maps_need_a_clear_difference() -> None:
    """Whatever N is: t of two label maps has one degree of freedom, of five it has four."""
    for n in (30, 3000):
        two = compare(in_label_maps([90, 80], n), in_label_maps([60, 60], n), lower_is_better=False)
        assert two.verdict == "cannot tell"
        five = [in_label_maps(hits, n) for hits in ([90, 80, 85, 88, 92], [60, 60, 61, 59, 58])]
        assert compare(*five, lower_is_better=False).verdict == "better"


def test_the_same_scores_have_no_difference() -> None:
    found = compare(in_label_maps([90, 70]), in_label_maps([90, 70]), lower_is_better=False)
    assert (found.difference, found.low, found.high, found.verdict) == (0, 0, 0, "cannot tell")


def test_estimates_come_back_from_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    tables = np.concatenate([read_tables(rng, 30), read_tables(rng, 30)])
    scores = {"fid_lite0": fid_estimate(*pairs(rng, 30, 10)), "iou_trained/road": tables_estimate(tables)}
    save_estimates(scores, tmp_path / "e.safetensors")
    back = load_estimates(tmp_path / "e.safetensors")
    assert [score.record() for score in back.values()] == [score.record() for score in scores.values()]
    assert compare(back["fid_lite0"], scores["fid_lite0"], True).verdict == "cannot tell"


def test_estimates_of_earlier_versions_are_explained(tmp_path: Path) -> None:
    """As dpgan wrote them before the jackknife: 2000 replicates of each score."""
    facts = {"fid_lite0": {"value": 1.0, "replicates": None, "n": 8, "seeds": 1, "deviation": None}}
    save_file({"fid_lite0": np.zeros(2000)}, tmp_path / "old.safetensors", {"estimates": json.dumps(facts)})
    save_file({"fid_lite0": np.zeros(2000)}, tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "old.safetensors").read_bytes()[:100])
    for name in ("old", "bare", "cut"):
        with pytest.raises(
            UserError, match=rf"{name}\.safetensors: holds no scores that this version .*evaluate again"
        ):
            load_estimates(tmp_path / f"{name}.safetensors")

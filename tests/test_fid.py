import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from dpgan.evaluation import fid as fid_module
from dpgan.evaluation.baselines import class_mean_colors, paint
from dpgan.evaluation.fid import fid, fid_contributions, kid, kid_with_contributions


def textbook_fid(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al., equation 6, word for word."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def samples(seed: int, n: int, dimension: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, (n, dimension)) @ generator.normal(0, 1, (dimension, dimension))


@pytest.mark.parametrize(("n", "m"), [(200, 300), (200, 8), (9, 150)])
def test_fid_is_the_textbook_formula(n: int, m: int) -> None:
    x, y = samples(0, n, 8), samples(1, m, 8, shift=0.5)
    assert fid(x, y) == pytest.approx(textbook_fid(x, y), rel=1e-6)


def test_fid_with_fewer_samples_than_features() -> None:
    x, y = samples(0, 12, 30), samples(1, 20, 30, shift=0.5)
    # Both sets span at most 30 dimensions, so appending zeros changes nothing but the branch taken.
    assert fid(x, y) == pytest.approx(fid(np.pad(x, ((0, 0), (0, 50))), np.pad(y, ((0, 0), (0, 50)))), rel=1e-12)
    # sqrtm of a singular matrix is good for some six digits.
    assert fid(x, y) == pytest.approx(textbook_fid(x, y), rel=1e-4)


def test_more_and_fewer_vectors_than_features_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples(0, 40, 16), samples(1, 50, 16, shift=0.2)
    wide_x, wide_y = (np.pad(z, ((0, 0), (0, 50))) for z in (x, y))  # zeros change nothing but the branch
    monkeypatch.setattr(fid_module, "_ROWS_AT_ONCE", 7)
    assert fid(x, y) == pytest.approx(fid(wide_x, wide_y), rel=1e-12)
    for ours, others in zip(fid_contributions(x, y), fid_contributions(wide_x, wide_y), strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-9, atol=1e-9)


def test_features_that_do_not_vary_contribute_nothing() -> None:
    """As those of a network whose ReLUs are dead: the covariance has no inverse."""
    x, y = samples(0, 40, 16), samples(1, 50, 16, shift=0.2)
    dead_x, dead_y = (np.insert(z, [3, 9], 0.5, axis=1) for z in (x, y))
    assert fid(dead_x, dead_y) == pytest.approx(fid(x, y), rel=1e-12)
    for ours, others in zip(fid_contributions(dead_x, dead_y), fid_contributions(x, y), strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [10, 100])
def test_fid_of_a_set_with_itself_is_zero(n: int) -> None:
    x = samples(3, n, 20)
    assert fid(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_fid_of_two_gaussians_known_in_closed_form() -> None:
    # Whitened samples: mean and covariance are exact, not estimates.
    x = np.random.default_rng(0).normal(size=(500, 3))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    y = x * [1.0, 2.0, 3.0] + [0.0, 0.0, 4.0]
    assert fid(x, y) == pytest.approx(4**2 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=1e-12)


def test_fid_takes_float32_features_and_computes_in_float64() -> None:
    x, y = samples(0, 60, 8).astype(np.float32) + 1000, samples(1, 60, 8).astype(np.float32) + 1000
    assert fid(x, y) == fid(x.astype(np.float64), y.astype(np.float64))


def brute_force_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z: np.ndarray) -> float:
        n = len(z)
        return sum(kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


@pytest.mark.parametrize("m", [10, 7])
@pytest.mark.parametrize("at_once", [2**22, 1, 33])
def test_kid_is_a_thousand_times_the_brute_force_mmd(m: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples(0, 10, 4), samples(1, m, 4, shift=0.3)
    monkeypatch.setattr(fid_module, "_KERNELS_AT_ONCE", at_once)
    assert kid(x, y) == pytest.approx(1000 * brute_force_kid(x, y), rel=1e-9)


def test_kid_is_unbiased_at_any_size() -> None:
    def mean_kid(size: int, shift: float) -> float:
        generator = np.random.default_rng(size)
        values = [kid(generator.normal(0, 1, (size, 8)), generator.normal(shift, 1, (size, 8))) for _ in range(400)]
        return float(np.mean(values))

    for size in (10, 40):
        assert mean_kid(size, 0.0) == pytest.approx(0, abs=60)
    assert mean_kid(10, 0.5) == pytest.approx(mean_kid(40, 0.5), rel=0.1)
    assert mean_kid(40, 0.5) > 500


@pytest.mark.parametrize("count", [500, 2000])
def test_many_vectors_take_little_memory(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as much as one of the sets, besides blocks: of 36,000 crops both sets take 0.7 GiB, and this 0.2 more."""
    x, y = (np.random.default_rng(seed).normal(size=(count, 64)) for seed in (0, 1))
    monkeypatch.setattr(fid_module, "_KERNELS_AT_ONCE", 2**12)
    monkeypatch.setattr(fid_module, "_ROWS_AT_ONCE", 64)
    tracemalloc.start()
    kid_with_contributions(x, y)
    fid(x, y)
    fid_contributions(x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * x.nbytes + 2**19


def test_class_mean_colors() -> None:
    images = np.zeros((2, 1, 2, 3), dtype=np.uint8)
    images[0, 0] = [[10, 20, 30], [20, 40, 60]]
    images[1, 0] = [[30, 60, 91], [255, 0, 1]]
    labels = np.array([[[0, 0]], [[0, 2]]], dtype=np.uint8)
    colors = class_mean_colors(images, labels, num_classes=3)
    np.testing.assert_allclose(colors[0], [20, 40, 181 / 3])
    np.testing.assert_array_equal(colors[2], [255, 0, 1])
    np.testing.assert_allclose(colors[1], images.reshape(-1, 3).mean(axis=0))  # a class without a pixel


def test_paint_rounds_and_keeps_leading_axes() -> None:
    colors = np.array([[0.4, 0.6, 254.6], [1.0, 2.0, 3.0]])
    painted = paint(np.array([[[0, 1]], [[1, 1]]], dtype=np.uint8), colors)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[[0, 1, 255], [1, 2, 3]]], [[[1, 2, 3], [1, 2, 3]]]]


def test_features_that_are_not_finite_have_no_distance() -> None:
    x = np.random.default_rng(0).standard_normal((6, 4))
    broken = np.where(np.arange(4) == 2, np.nan, x)
    assert np.isnan(fid(x, broken))
    assert np.isnan(kid(x, broken))


class Given(torch.nn.Module):
    """torchmetrics' feature network, where the features are given."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def relu_features(seed: int, n: int, dimension: int, shift: float) -> np.ndarray:
    """Features as networks have them: not negative, correlated, most of the variance in few directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(dimension, dimension)) / np.arange(1, dimension + 1) ** 0.5
    return np.maximum(rng.normal(shift, 1, (n, dimension)) @ mixing.T, 0)


@pytest.mark.parametrize("seed", range(3))
def test_fid_agrees_with_torch_fidelity_and_torchmetrics(seed: int) -> None:
    x, y = relu_features(seed, 300, 64, 0), relu_features(seed + 10, 400, 64, 0.2)
    statistics = [fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid(x, y) == pytest.approx(theirs, rel=1e-6)

    metric = FrechetInceptionDistance(Given(64))
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    assert fid(x, y) == pytest.approx(metric.compute().item(), rel=1e-6)


@pytest.mark.parametrize("dimension", [16, 200])
def test_kid_agrees_with_torch_fidelity_and_torchmetrics(dimension: int) -> None:
    """On subsets that are the whole set: ours is of whole sets."""
    x, y = relu_features(0, 90, dimension, 0), relu_features(1, 90, dimension, 0.2)
    ours = kid(x, y)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=2, kid_subset_size=90, kid_kernel="poly", verbose=False
    )["kernel_inception_distance_mean"]
    assert ours == pytest.approx(1000 * theirs, rel=1e-6)

    metric = KernelInceptionDistance(Given(dimension), subsets=2, subset_size=90)
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    assert ours == pytest.approx(1000 * metric.compute()[0].item(), rel=1e-6)


def test_means_over_subsets_scatter_around_kid() -> None:
    """What torch-fidelity prints by default, the mean over random subsets, has the expectation of ours."""
    x, y = relu_features(0, 90, 16, 0), relu_features(1, 90, 16, 0.2)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1000, kid_subset_size=30, kid_kernel="poly", verbose=False
    )
    mean, deviation = (1000 * theirs[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    assert kid(x, y) == pytest.approx(mean, abs=3 * deviation / 1000**0.5)
    assert 3 * deviation / 1000**0.5 < 0.5 * kid(x, y)  # sharp enough to notice another estimator


@pytest.mark.parametrize(("n", "m", "dimension"), [(12, 9, 4), (8, 8, 30)])
def test_fid_contributions_are_its_derivatives(n: int, m: int, dimension: int) -> None:
    x, y = samples(0, n, dimension), samples(1, m, dimension, shift=0.5)
    copies = 1000
    many_x, many_y = x.repeat(copies, axis=0), y.repeat(copies, axis=0)
    for_x, for_y = fid_contributions(x, y)
    assert for_x.mean() == pytest.approx(0, abs=1e-9)
    whole = fid(many_x, many_y)
    for i in (0, 5):
        # One copy more: x_i weighs 1/1000 more than the others.
        assert fid(np.vstack([many_x, x[i]]), many_y) - whole == pytest.approx(for_x[i] / (copies * n), rel=0.02)
        assert fid(many_x, np.vstack([many_y, y[i]])) - whole == pytest.approx(for_y[i] / (copies * m), rel=0.02)


def test_kid_contributions_tell_what_a_set_without_one_vector_scores() -> None:
    x, y = samples(0, 80, 6), samples(1, 80, 6, shift=0.3)

    value, (for_x, for_y) = kid_with_contributions(x, y)
    assert value == kid(x, y)
    rest = [np.arange(80) != i for i in range(80)]
    moved = [(value - kid(x[keep], y[keep])) * 79 for keep in rest]
    assert np.corrcoef(moved, for_x + for_y)[0, 1] > 0.99
    assert np.std(for_x + for_y) == pytest.approx(np.std(moved), rel=0.05)

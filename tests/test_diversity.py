import numpy as np
import pytest

from dpgan.evaluation.diversity import diversity


def test_it_is_the_mean_cosine_distance_of_all_pairs() -> None:
    features = np.random.default_rng(0).random((4, 3, 10))
    value = diversity(features)
    for n in range(3):
        unit = features[:, n] / np.linalg.norm(features[:, n], axis=1, keepdims=True)
        distances = [1 - unit[a] @ unit[b] for a in range(4) for b in range(a)]
        assert value[n] == pytest.approx(100 * np.mean(distances))


def test_equal_images_have_none_and_unlike_ones_have_all() -> None:
    same = np.ones((3, 1, 4))
    unlike = np.eye(3)[:, None]
    assert diversity(same) == pytest.approx(0, abs=1e-12)
    assert diversity(unlike) == pytest.approx(100)
    assert diversity(5 * unlike) == pytest.approx(100)  # scale does not count

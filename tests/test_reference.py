"""Features of the real photos on disk: read again only where nothing that they depend on has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dpgan.errors import UserError
from dpgan.evaluation import reference
from dpgan.evaluation.reference import References


class Mean:
    """The mean colour, as an extractor."""

    dimension, device = 3, torch.device("cpu")

    def __init__(self, digest: str = "weights", name: str = "mean") -> None:
        self.digest, self.name = digest, name

    def __call__(self, images: Tensor) -> Tensor:
        return images.double().mean((2, 3))


FEATURES = np.random.default_rng(0).random((5, 3))


def never() -> np.ndarray:
    raise AssertionError("extracted again")


def fails() -> np.ndarray:
    raise KeyboardInterrupt


def test_extracted_once(tmp_path: Path) -> None:
    references = References(tmp_path / "references", "data")
    which = {"split": "val", "x": 1}
    np.testing.assert_array_equal(references.features(Mean(), which, lambda: FEATURES), FEATURES)
    again = References(tmp_path / "references", "data").features(Mean(), dict(which), never)
    np.testing.assert_array_equal(again, FEATURES)
    assert again.dtype == np.float64


def test_whatever_changes_it_is_extracted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, photos, weights, and the code that feeds them."""
    which = {"split": "val", "x": 1}
    first = References(tmp_path, "data").path(Mean(), which)
    others = [
        References(tmp_path, "other data").path(Mean(), which),
        References(tmp_path, "data").path(Mean(), {"split": "train", "x": 1}),
        References(tmp_path, "data").path(Mean(), {"split": "val", "x": 2}),
        References(tmp_path, "data").path(Mean(digest="others"), which),
        References(tmp_path, "data").path(Mean(name="median"), which),
    ]
    monkeypatch.setattr(reference, "file_sha256", lambda _: "edited")
    others.append(References(tmp_path, "data").path(Mean(), which))
    assert len({first, *others}) == 7


def test_there_whole_or_not_at_all(tmp_path: Path) -> None:
    references = References(tmp_path, "data")
    with pytest.raises(KeyboardInterrupt):
        references.features(Mean(), {}, fails)
    assert not list(tmp_path.iterdir())
    references.features(Mean(), {}, lambda: FEATURES)
    assert list(tmp_path.iterdir()) == [references.path(Mean(), {})]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    references = References(tmp_path, "data")
    references.features(Mean(), {}, lambda: FEATURES)
    path = references.path(Mean(), {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"mean-.*npy: damaged .*; delete it"):
        references.features(Mean(), {}, never)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        references.features(Mean(), {}, never)

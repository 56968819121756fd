"""What a judge reads, by image, and the scores of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_card
from torch import nn

from dpgan.evaluation.readings import accuracy, class_iou, mean_iou, read, tables

# Classes 0 and 2 are evaluated, 1 is not.
EVALUATED = np.array([0, 2])
LABELS = np.array([[[0, 0, 2], [1, 1, 2]], [[0, 0, 0], [0, 0, 0]]], dtype=np.uint8)
PREDICTED = np.array([[[0, 2, 2], [0, 2, 1]], [[0, 0, 0], [0, 0, 1]]])


def test_pixels_by_image_and_class() -> None:
    """Pixels of class 1 do not count, whatever is read there; where 1 is read in others, it is a miss."""
    found = tables(PREDICTED, LABELS, EVALUATED)
    assert found.dtype == np.int64
    assert found[0].tolist() == [[1, 2, 1], [1, 2, 2]]
    assert found[1].tolist() == [[5, 6, 5], [0, 0, 0]]


def test_scores_of_summed_pixels() -> None:
    summed = tables(PREDICTED, LABELS, EVALUATED).sum(axis=0)
    assert class_iou(summed).tolist() == [100 * 6 / 8, 100 * 1 / 3]
    assert mean_iou(summed) == pytest.approx((75 + 100 / 3) / 2)
    assert accuracy(summed) == 100 * 7 / 10


def test_a_class_that_is_neither_there_nor_read_is_left_out() -> None:
    found = tables(PREDICTED, LABELS, EVALUATED)[1]
    assert np.isnan(class_iou(found)).tolist() == [False, True]
    assert mean_iou(found) == pytest.approx(100 * 5 / 6)
    nothing = np.zeros((2, 3), dtype=np.int64)
    assert np.isnan(mean_iou(nothing))
    assert np.isnan(accuracy(nothing))


def test_stacks_are_scored_one_by_one() -> None:
    found = tables(PREDICTED, LABELS, EVALUATED)
    np.testing.assert_array_equal(mean_iou(found), [mean_iou(one) for one in found])


class Voids(nn.Module):
    """A judge that is surest of the void classes and second-surest of one other."""

    def __init__(self, void: np.ndarray, other: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(void).float() * 2)
        self.logits.data[other] = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[None, :, None, None].expand(len(images), -1, *images.shape[-2:])


def test_void_is_never_read() -> None:
    card = tiny_card()
    assert card.void.any()
    other = int(card.evaluated[2])
    labels = np.full((1, 2, 2), other, dtype=np.uint8)
    found = read(Voids(card.void, other), torch.zeros(1, 3, 2, 2), labels, card)
    assert found[0, 2].tolist() == [4, 4, 4]

"""Counts and scores by hand; the id tables of the published label sets against hand-made confusion matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from raw_pairs import make_card
from torch import Tensor

from dpgan.evaluation.judges.base import OTHER, Judge
from dpgan.evaluation.readings import OBJECTS, accuracy, class_iou, mean_iou, of_real, read, scores, tables
from dpgan.labels import Card, load_card

CARD = make_card()
EVALUATED = CARD.evaluated


class Fixed(Judge):
    """Reads the class that the red channel names, at the size of `like` or of the pictures."""

    kind = "fixed"

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        super().__init__("fixed", "abc", np.array([0, 1, OTHER], dtype=np.uint8))
        self.size = size

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def config(self) -> dict[str, Any]:
        return {}

    def scores(self, images: Tensor) -> Tensor:
        votes = torch.nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2).float()
        return votes if self.size is None else torch.nn.functional.interpolate(votes, self.size)


def test_counts_by_hand() -> None:
    truth = np.array([[[0, 0, 0, 1, 1, 2, 2]]], dtype=np.uint8)
    predicted = np.array([[[0, 1, OTHER, 1, 0, 0, 1]]], dtype=np.uint8)
    counts = tables(predicted, truth, EVALUATED)
    assert counts.dtype == np.int64
    # Hits, truth, predicted. Pixels of class 2 are not evaluated, and what is read there counts for nobody.
    assert counts.tolist() == [[[1, 3, 2], [1, 2, 2]]]


def test_counts_are_those_of_a_confusion_matrix() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 5, (2, 3, 16, 16), dtype=np.uint8)
    evaluated = np.array([4, 0, 2])
    for row, true, seen in zip(tables(predicted, truth, evaluated), truth, predicted, strict=True):
        matrix = np.zeros((5, 5), dtype=int)
        np.add.at(matrix, (true.ravel(), seen.ravel()), 1)
        counted = matrix[evaluated][:, evaluated]
        columns = [counted.diagonal(), matrix[evaluated].sum(axis=1), counted.sum(axis=0)]
        np.testing.assert_array_equal(row, np.stack(columns, axis=1))


def test_one_row_a_picture_whatever_the_batches() -> None:
    images, labels = torch.zeros(5, 3, 2, 4), torch.zeros(5, 2, 4, dtype=torch.uint8)
    images[3:], labels[1] = 1, 1
    whole = read(Fixed(), images, labels.numpy(), CARD)
    assert whole.shape == (5, 2, 3)
    parts = [read(Fixed(), *pair, CARD) for pair in zip(images.split(2), np.split(labels.numpy(), [2, 4]), strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole[:, :, 0].tolist() == [[8, 0], [0, 0], [8, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("factor", [2, 4])
def test_label_maps_follow_a_judge_that_reads_at_another_size(factor: int) -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    images = labels[:, None].float().expand(-1, 3, -1, -1)
    counts = read(Fixed((2 * factor, 2 * factor)), images, labels.numpy(), CARD)
    assert counts.tolist() == [[[2 * factor**2] * 3] * 2]


def test_iou_and_accuracy_by_hand() -> None:
    counts = np.array([[6, 8, 7], [3, 4, 5], [0, 0, 0], [0, 0, 2]])
    values = class_iou(counts)
    assert values[[0, 1, 3]] == pytest.approx([100 * 6 / 9, 100 * 3 / 6, 0])
    assert np.isnan(values[2])  # neither there nor read
    assert accuracy(counts) == pytest.approx(100 * 9 / 12)
    assert mean_iou(counts) == pytest.approx((100 * 6 / 9 + 50 + 0) / 3)
    resampled = np.stack([counts, 2 * counts])  # any leading dimensions: a bootstrap's
    np.testing.assert_array_equal(class_iou(resampled), [values, values])


def test_scores_by_name() -> None:
    card = make_card()
    found = scores(np.array([[[6, 8, 7], [0, 0, 0]]]), "trained", card)
    expected = {"miou_trained": 100 * 6 / 9, "accuracy_trained": 75.0, "iou_trained/sky": 100 * 6 / 9}
    assert found == pytest.approx(expected)
    assert of_real(found, {"miou_trained": 80.0, "accuracy_trained": 90.0}) == pytest.approx(
        {"miou_trained_of_real": 100 * 100 * 6 / 9 / 80, "accuracy_trained_of_real": 100 * 75 / 90}
    )


def test_a_class_that_is_neither_there_nor_read_is_left_out() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    assert np.isnan(mean_iou(nothing))
    assert np.isnan(accuracy(nothing))
    assert scores(nothing[None], "x", CARD).keys() == {"miou_x", "accuracy_x"}
    stacks = np.random.default_rng(0).integers(0, 9, (4, 2, 3))
    np.testing.assert_array_equal(mean_iou(stacks), [mean_iou(one) for one in stacks])


# Table 2 of the paper, DP-GAN's row, in the order of Cityscapes' 19 classes.
TABLE_2 = [97.5, 81.9, 87.2, 71.4, 72.7, 46.9, 55.5, 60.3, 87.3, 72.9, 92.4, 67.4, 55.5, 89.9, 81.5, 83.1, 73.9, 55.3,
           66.9]  # fmt: skip


def test_obj_miou_is_that_of_the_paper() -> None:
    counts = np.array([[[round(value * 10), 1000, round(value * 10)] for value in TABLE_2]])
    found = scores(counts, "drn105_256", load_card("cityscapes", ROOT / "data"))
    assert found["obj_miou_drn105_256"] == pytest.approx(66.9, abs=0.05)
    assert found["miou_drn105_256"] == pytest.approx(73.6, abs=0.15)  # table 1
    assert found["iou_drn105_256/traffic sign"] == pytest.approx(60.3)
    assert "obj_miou_x" not in scores(np.ones((1, 11, 3), dtype=int), "x", load_card("camvid", ROOT / "data"))


def read_raw(card: Card, matrix: dict[tuple[int, int], int]) -> dict[str, float]:
    """Scores of a hand-made confusion matrix: pixels by raw id that is true and that is read."""
    pairs = [pair for pair, pixels in matrix.items() for _ in range(pixels)]
    truth, predicted = (card.id_table[list(ids)].astype(np.uint8)[None, None] for ids in zip(*pairs, strict=True))
    return scores(tables(predicted, truth, card.evaluated), "m", card)


def test_of_35_classes_19_count() -> None:
    card = load_card("cityscapes", ROOT / "data")
    assert (card.num_classes, len(card.evaluated)) == (35, 19)
    # Roads (7) and cars (26); parking (9), caravans (29), unlabeled (0) and license plates (255) are not evaluated.
    matrix = {(7, 7): 70, (7, 9): 10, (9, 7): 40, (29, 26): 30, (0, 26): 20, (255, 26): 5, (26, 26): 8, (26, 29): 2,
              (26, 7): 10}  # fmt: skip
    found = read_raw(card, matrix)
    assert found["iou_m/road"] == pytest.approx(100 * 70 / (80 + 10))
    assert found["iou_m/car"] == pytest.approx(100 * 8 / 20)
    assert found["accuracy_m"] == pytest.approx(100 * 78 / 100)
    assert {name for name in found if "/" in name} == {"iou_m/road", "iou_m/car"}
    assert {card.classes[i].name for i in card.evaluated} >= set(OBJECTS)


def test_of_ade20k_all_but_void_count() -> None:
    card = load_card("ade20k", ROOT / "data")
    assert card.id_table[1:151].tolist() == card.evaluated.tolist()
    found = read_raw(card, {(1, 1): 6, (150, 150): 3, (150, 1): 1, (0, 1): 90})
    assert found["iou_m/wall"] == pytest.approx(100 * 6 / 7)
    assert found["iou_m/flag"] == pytest.approx(100 * 3 / 4)
    assert found["miou_m"] == pytest.approx((100 * 6 / 7 + 75) / 2)

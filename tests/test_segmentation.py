import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dpgan.config import JudgeSettings
from dpgan.data.pixels import to_float
from dpgan.errors import UserError
from dpgan.evaluation.baselines import class_mean_colors, paint
from dpgan.evaluation.segmentation import (
    Judge,
    augment,
    class_weights,
    confusion,
    iou,
    load_judge,
    save_judge,
    train_judge,
)

NO_VOID = np.zeros(3, dtype=bool)


class FixedLogits(nn.Module):
    """Stands in for a judge: predicts the class that the red channel names, void class 2 almost as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2).float()
        logits[:, 2] += 0.5
        return logits


def predicting(*classes: int) -> Tensor:
    return torch.tensor(classes).float().expand(1, 3, 1, len(classes))


def test_confusion_counts_truth_in_rows_and_predictions_in_columns() -> None:
    batch = (predicting(0, 0, 1, 1, 2), torch.tensor([[[0, 1, 1, 1, 2]]], dtype=torch.uint8))
    table = confusion(FixedLogits(), [batch, batch], 3, NO_VOID)
    assert table.dtype == np.int64
    assert table.tolist() == [[2, 0, 0], [2, 4, 0], [0, 0, 2]]


def test_void_is_neither_counted_nor_predicted() -> None:
    batch = (predicting(0, 2, 1, 2), torch.tensor([[[0, 2, 1, 1]]], dtype=torch.uint8))
    table = confusion(FixedLogits(), [batch], 3, np.array([False, False, True]))
    # The second pixel is void. The last one would be read as void: the best of the others counts.
    assert table.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_iou_by_hand() -> None:
    table = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [5, 7, 0, 9]])
    values, mean = iou(table, np.array([0, 1, 2]))
    # Class 3 is not evaluated: its true pixels count for nobody; class 2 is nowhere.
    assert values[:2] == pytest.approx([100 * 6 / 9, 100 * 3 / 6])
    assert np.isnan(values[2])
    assert mean == pytest.approx((100 * 6 / 9 + 50) / 2)


def test_iou_of_a_class_that_is_only_predicted_is_zero_and_of_an_unevaluated_prediction_a_miss() -> None:
    values, mean = iou(np.array([[3, 1, 4], [0, 0, 0], [0, 0, 0]]), np.array([0, 1]))
    assert values == pytest.approx([100 * 3 / 8, 0])
    assert mean == pytest.approx(100 * 3 / 16)


def test_class_weights() -> None:
    labels = np.array([[[0] * 16 + [1] * 4 + [3] * 9]], dtype=np.uint8)
    weights = class_weights(labels, np.array([False, False, False, True]))
    assert weights[1] / weights[0] == pytest.approx(2)  # four times rarer
    assert weights[2:].tolist() == [0, 0]  # absent, void
    assert (16 * weights[0] + 4 * weights[1]) / 20 == pytest.approx(1)


def test_read_only_images_are_copied() -> None:
    images = np.full((1, 2, 2, 3), 255, dtype=np.uint8)
    images.flags.writeable = False  # as a memory map is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(to_float(images), torch.ones(1, 3, 2, 2))


def test_augment_moves_photo_and_labels_alike() -> None:
    labels = torch.randint(0, 2, (6, 4, 8), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    photos = labels[:, None].float().expand(-1, 3, -1, -1) * 2 - 1
    moved, moved_labels = augment(photos, labels, torch.Generator().manual_seed(0))
    assert moved.shape == photos.shape
    assert moved_labels.dtype == torch.uint8
    assert not torch.equal(moved_labels, labels)
    # Dark is class 0 and bright class 1, before and after; jitter and blended edges aside.
    assert ((moved[:, 0] > 0) == (moved_labels == 1)).float().mean() > 0.95


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """Colour-coded scenes with texture: three classes in blocks, 32x64; class 2 only has a coarse texture."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (48, 2, 4), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    colors = np.array([[60, 90, 60], [150, 150, 160], [150, 150, 160]])
    noise = generator.normal(0, 1, labels.shape)
    stripes = 60 * np.sign(np.sin(np.arange(64) * np.pi / 2 + 0.5))
    texture = np.where(labels == 2, stripes, 6 * noise)[..., None]
    return (colors[labels] + texture).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def judge(scenes: tuple[np.ndarray, np.ndarray]) -> Judge:
    images, labels = scenes
    return train_judge(images[:32], labels[:32], NO_VOID, JudgeSettings(images=160, batch=8, size=(32, 64)), 0)


def miou(judge: Judge, images: np.ndarray, labels: np.ndarray) -> float:
    table = confusion(judge, [(to_float(images), torch.from_numpy(labels))], 3, NO_VOID)
    return iou(table, np.arange(3))[1]


def test_the_judge_ranks_real_blurred_mean_colours_and_shuffled(
    judge: Judge, scenes: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = scenes
    real, truth = images[32:], labels[32:]
    blurred = np.stack([gaussian_filter(image, (1.5, 1.5, 0)) for image in real])
    floor = paint(truth, class_mean_colors(images[:32], labels[:32], 3))
    scores = [miou(judge, x, truth) for x in (real, blurred, floor, real[::-1].copy())]
    assert scores == sorted(scores, reverse=True), scores
    assert scores[0] > 80
    assert scores[-1] < 40


def test_training_repeats_by_seed_and_reports_progress(tmp_path: Path) -> None:
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (5, 32, 32, 3))
    labels = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.uint8, (5, 32, 32))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape)
    labels[:, :16] = 1
    images, labels = np.load(tmp_path / "images.npy", "r"), np.load(tmp_path / "labels.npy", "r")
    seen: list[tuple[int, int, float]] = []
    settings = JudgeSettings(images=6, batch=2, size=(32, 32))
    state = torch.random.get_rng_state()
    one = train_judge(images, labels, NO_VOID, settings, 7, lambda *report: seen.append(report))
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is left alone
    two = train_judge(images, labels, NO_VOID, settings, 7)
    other = train_judge(images, labels, NO_VOID, settings, 8)
    assert [report[:2] for report in seen] == [(2, 6), (4, 6), (6, 6)]
    assert all(np.isfinite(report[2]) for report in seen)
    assert not one.training
    assert torch.equal(one.classify.weight, two.classify.weight)
    assert not torch.equal(one.classify.weight, other.classify.weight)


@pytest.mark.parametrize("size", [None, (48, 80)])
def test_a_saved_judge_comes_back(tmp_path: Path, size: tuple[int, int] | None) -> None:
    judge = Judge(3, pretrained=False, size=size).eval()
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors", 3)
    with torch.no_grad():
        logits = judge(images)
        assert logits.shape == (2, 3, 32, 64)
        assert torch.equal(loaded(images), logits)
    assert loaded.size == size
    assert not loaded.training


def test_a_judge_that_does_not_fit_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match="is not there"):
        load_judge(path, 3)
    save_judge(Judge(3, pretrained=False), path)
    with pytest.raises(UserError, match="a judge of 3 classes, the dataset has 5"):
        load_judge(path, 5)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="an unknown number of classes"):
        load_judge(path, 3)
    save_file({"weight": torch.zeros(1)}, path, {"num_classes": "3", "size": "null"})
    with pytest.raises(UserError, match="not a judge's weights"):
        load_judge(path, 3)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="not a judge's weights"):
        load_judge(path, 3)

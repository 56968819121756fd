"""The judge that is trained here: repeatable, and it tells real photos from worse ones."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_pairs import make_card
from scipy.ndimage import gaussian_filter

from dpgan.config import JudgeSettings
from dpgan.data.pixels import to_float
from dpgan.errors import UserError
from dpgan.evaluation.baselines import class_mean_colors, paint
from dpgan.evaluation.judges import Judge, load_judge, save_judge
from dpgan.evaluation.judges.trained import Trained, augment, class_weights, train_judge
from dpgan.evaluation.readings import read, scores

CLASSES = [{"id": i, "name": name, "color": (i, i, i), "evaluate": True} for i, name in enumerate("abc")]
CARD = make_card(classes=CLASSES)


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
    return train_judge(images[:32], labels[:32], CARD, JudgeSettings(images=160, batch=8, size=(32, 64)), 0)


def miou(judge: Judge, images: np.ndarray, labels: np.ndarray) -> float:
    return scores(read(judge, to_float(images), labels, CARD), "trained", CARD)["miou_trained"]


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
    one = train_judge(images, labels, CARD, settings, 7, lambda *report: seen.append(report))
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is left alone
    two = train_judge(images, labels, CARD, settings, 7)
    other = train_judge(images, labels, CARD, settings, 8)
    assert [report[:2] for report in seen] == [(2, 6), (4, 6), (6, 6)]
    assert all(np.isfinite(report[2]) for report in seen)
    assert not one.training
    assert torch.equal(one.classify.weight, two.classify.weight)
    assert not torch.equal(one.classify.weight, other.classify.weight)


def test_void_is_never_read() -> None:
    card = make_card()
    judge = Trained(card).eval()
    with torch.no_grad():
        judge.classify.weight.zero_()
        judge.classify.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))  # void, the last, most of all
    assert torch.equal(judge(torch.zeros(1, 3, 32, 64)).argmax(1), torch.full((1, 32, 64), 2))
    assert torch.equal(judge.predict(torch.zeros(1, 3, 32, 64)), torch.ones(1, 32, 64, dtype=torch.uint8))


@pytest.mark.parametrize("size", [None, (48, 80)])
def test_a_saved_judge_comes_back(tmp_path: Path, size: tuple[int, int] | None) -> None:
    judge = Trained(CARD, size).eval()
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors", CARD)
    assert isinstance(loaded, Trained)
    with torch.no_grad():
        logits = judge(images)
        assert logits.shape == (2, 3, 32, 64)
        assert torch.equal(loaded(images), logits)
    assert loaded.size == size
    assert not loaded.training


def test_a_judge_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_judge(Trained(CARD), tmp_path / "judge.safetensors")
    with pytest.raises(UserError, match=r"has 'sky' where the judge has 'a'; `dvc repro judge`"):
        load_judge(tmp_path / "judge.safetensors", make_card())
    with pytest.raises(UserError, match=r"trained for 3 other classes: data/tiny/dataset\.yaml has 2"):
        load_judge(tmp_path / "judge.safetensors", make_card(classes=CLASSES[:2]))

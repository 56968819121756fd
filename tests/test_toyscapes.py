"""Toyscapes: deterministic scenes, exact labels, and a folder that is whole or not there."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpgan.data import toyscapes
from dpgan.data.toyscapes import Scene, render_scene, write_dataset
from dpgan.errors import UserError
from dpgan.labels import Card, load_card

SIZE = (64, 128)
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card("toyscapes", Path(__file__).parent.parent / "data")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(0, index, SIZE) for index in range(120)]


def small(card: Card, **recipe: object) -> Card:
    assert card.toyscapes is not None
    recipe = {"train": 5, "val": 3, "size": SIZE, **recipe}
    return card.model_copy(update={"toyscapes": card.toyscapes.model_copy(update=recipe)})


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, again = render_scene(3, 14, SIZE), render_scene(3, 14, SIZE)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (render_scene(3, 15, SIZE), render_scene(4, 14, SIZE)):
        assert (other.image != first.image).mean() > 0.5


def test_ids_are_known_and_every_evaluated_class_is_common(card: Card, scenes: list[Scene]) -> None:
    labels = np.stack([s.label for s in scenes])
    assert (card.id_table[labels] >= 0).all()
    for info in card.classes:
        if info.evaluate:
            seen = (labels == info.id).sum(axis=(1, 2)) >= 20
            assert seen.mean() >= 0.08, info.name


def test_rare_vehicles_are_rare_but_there(scenes: list[Scene]) -> None:
    for class_id in (27, 28, 31):
        share = np.mean([(s.label == class_id).sum() >= 20 for s in scenes])
        assert 0.1 <= share <= 0.4


def test_instances_agree_with_labels(scenes: list[Scene]) -> None:
    for scene in scenes[:40]:
        thing = np.isin(scene.label, THINGS)
        codes = scene.instance.astype(int)
        np.testing.assert_array_equal(codes[thing] // 1000, scene.label[thing])
        np.testing.assert_array_equal(codes[~thing], scene.label[~thing])


@pytest.mark.parametrize("size", [(97, 131), (33, 200), (64, 48), (128, 256)])
def test_any_size(size: tuple[int, int]) -> None:
    scene = render_scene(0, 1, size)
    assert (scene.image.shape, scene.image.dtype) == ((*size, 3), np.uint8)
    assert (scene.label.shape, scene.label.dtype) == (size, np.uint8)
    assert (scene.instance.shape, scene.instance.dtype) == (size, np.uint16)


@pytest.mark.parametrize("index", [0, 1, 2, 6, 8])
def test_a_larger_size_is_the_same_scene_painted_finer(index: int) -> None:
    # Tripling keeps pixel centres: the middle one of 3 x 3 fine pixels lies where the coarse one does.
    coarse, fine = render_scene(0, index, SIZE), render_scene(0, index, (SIZE[0] * 3, SIZE[1] * 3))
    assert (fine.label[1::3, 1::3] == coarse.label).mean() > 0.95
    averaged = fine.image.reshape(SIZE[0], 3, SIZE[1], 3, 3).mean(axis=(1, 3))
    assert np.abs(averaged - coarse.image).mean() < 10


def test_the_photo_changes_where_the_label_does(scenes: list[Scene]) -> None:
    """Shifting the labels by one pixel fits the photo worse: the outlines are the same."""

    def unexplained(image: np.ndarray, code: np.ndarray) -> float:
        _, segment = np.unique(code, return_inverse=True)
        segment, pixels = segment.ravel(), image.reshape(-1, 3).astype(float)
        sizes = np.bincount(segment)[:, None]
        means = np.stack([np.bincount(segment, pixels[:, c]) for c in range(3)], axis=1) / sizes
        return float(((pixels - means[segment]) ** 2).mean())

    def total(dy: int, dx: int) -> float:
        return sum(unexplained(s.image, np.roll(s.instance, (dy, dx), (0, 1))) for s in scenes[:30])

    there = total(0, 0)
    assert all(there < total(dy, dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)))


def test_write_dataset_follows_the_layout_for_any_number_of_workers(card: Card, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(small(card), tmp_path / "one", workers=1, progress=lambda done, total: seen.append((done, total)))
    write_dataset(small(card), tmp_path / "two", workers=2)
    assert seen == [(k, 8) for k in range(1, 9)]
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 3 * 8
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.png"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    assert card.toyscapes is not None
    for split, index in (("train", 4), ("val", 5)):  # validation goes on where training ends
        scene = render_scene(card.toyscapes.seed, index, SIZE)
        patterns = (card.layout.image, card.layout.label, card.layout.instance)
        for pattern, pixels in zip(patterns, scene, strict=True):
            assert pattern is not None
            with Image.open(tmp_path / "one" / pattern.format(split=split, id=f"{index:06d}")) as image:
                np.testing.assert_array_equal(np.asarray(image), pixels)


def test_nothing_is_left_of_a_rendering_that_fails(card: Card, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(small(card), tmp_path / "raw", workers=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_user_errors(card: Card, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toyscapes/dataset\.yaml.*nothing to render"):
        write_dataset(card.model_copy(update={"toyscapes": None}), tmp_path / "raw", workers=1)
    with pytest.raises(UserError, match="already there"):
        write_dataset(card, tmp_path, workers=1)


def test_speed() -> None:
    render_scene(0, 0, (256, 512))  # fills the noise caches
    start = time.process_time()
    for index in range(5):
        render_scene(0, index, (256, 512))
    assert 5 / (time.process_time() - start) > 5


def test_painting_order_is_by_layer_then_distance() -> None:
    camera = toyscapes.Camera(1.1, 0.45, 0.0, 1.6, 0.0)
    canvas = toyscapes.Canvas((32, 64), camera, toyscapes.LIGHTS["noon"])
    order: list[str] = []
    plan = toyscapes._Plan(canvas, toyscapes.Random(0))
    plan.add(toyscapes.STREET, 30.0, lambda _, name: order.append(name), "far car")
    plan.add(toyscapes.STREET, 5.0, lambda _, name: order.append(name), "near car")
    plan.add(toyscapes.HOUSES, 3.0, lambda _, name: order.append(name), "house")
    plan.paint()
    assert order == ["house", "far car", "near car"]

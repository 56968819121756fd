"""Objects by hand: what is one, its box, its group, its crop, and what its scores are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from raw_pairs import make_card
from torch import Tensor

from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.evaluation.fid import fid, kid
from dpgan.evaluation.objects import GROUPS, Objects, crop_features, find_objects, object_scores

CARD = make_card(classes=[
    {"id": 0, "name": "sky", "color": (0, 0, 0), "evaluate": True},
    {"id": 26, "name": "car", "color": (0, 0, 1), "evaluate": True, "thing": True},
    {"id": 24, "name": "person", "color": (0, 0, 2), "evaluate": True, "thing": True},
])  # fmt: skip
SIZE = (64, 128)  # a sixteenth of 256x512: large above 625 pixels, small below 156.25, none below 6.25


class Means:
    """Stands in for a network: the mean colour and the mean upper half of an image."""

    name, dimension, side, digest = "means", 6, 8, ""
    seen: list[tuple[int, ...]]

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return torch.cat([images.mean((2, 3)), images[:, :, :4].mean((2, 3))], 1).double()


def split(labels: np.ndarray, instances: np.ndarray | None = None) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    return Split(images, labels, [f"val/{i}" for i in range(len(labels))], instances)


@pytest.fixture
def labels() -> np.ndarray:
    found = np.zeros((2, *SIZE), dtype=np.uint8)
    found[0, 10:20, 5:15] = 1  # two cars that touch at a corner
    found[0, 20:30, 15:25] = 1
    found[0, 20:60, 60:80] = 2
    found[1, :3, :2] = 2  # 6 pixels: too few
    found[1, 40:, 100:] = 1
    return found


def test_pieces_of_countable_classes(labels: np.ndarray) -> None:
    objects = find_objects(split(labels), CARD)
    assert objects.source == "pieces"
    assert objects.image.tolist() == [0, 0, 1]
    assert objects.box.tolist() == [[10, 5, 30, 25], [20, 60, 60, 80], [40, 100, 64, 128]]
    assert objects.pixels.tolist() == [200, 800, 24 * 28]


def test_instances_where_the_dataset_has_them(labels: np.ndarray) -> None:
    codes = np.array([0, 26, 24], dtype=np.uint16)[labels]  # as it is where nobody told instances apart
    codes[0, 10:20, 5:15], codes[0, 20:30, 15:25] = 26000, 26001
    codes[0, 20:60, 60:65] = codes[0, 20:60, 70:80] = 24000  # one person, in two pieces
    codes[1, :3, :2] = 24000
    objects = find_objects(split(labels, codes), CARD)
    assert objects.source == "instances"
    assert objects.image.tolist() == [0, 0, 0]  # in their order: by code
    assert objects.box.tolist() == [[20, 60, 60, 80], [10, 5, 20, 15], [20, 15, 30, 25]]
    assert objects.pixels.tolist() == [600, 100, 100]


def test_an_image_full_of_instances_has_no_background() -> None:
    codes = np.full((1, *SIZE), 26000, dtype=np.uint16)
    codes[0, :, 64:] = 26001
    objects = find_objects(split(np.ones((1, *SIZE), dtype=np.uint8), codes), CARD)
    assert objects.pixels.tolist() == [64 * 64] * 2


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_groups_scale_with_the_area(scale: int) -> None:
    """The supplement's bounds at 256x512: large > 10000, small < 2500."""
    at_reference = np.array([10001, 10000, 2500, 2499, 100])
    area = 256 * 512 * scale**2
    objects = Objects(np.zeros(5, int), np.zeros((5, 4), int), at_reference * scale**2, area, "pieces")
    groups = objects.groups()
    assert tuple(groups) == GROUPS
    assert {name: chosen.tolist() for name, chosen in groups.items()} == {
        "all": [True] * 5,
        "large": [True, False, False, False, False],
        "medium": [False, True, True, False, False],
        "small": [False, False, False, True, True],
    }


def test_crops_are_boxes_resized_as_pillow_does(labels: np.ndarray) -> None:
    data = split(labels)
    objects = find_objects(data, CARD)
    extractor = Means()
    features = crop_features(extractor, to_float(data.images).split(1), objects)
    assert extractor.seen == [(3, 3, 8, 8)]
    for row, number, (top, left, bottom, right) in zip(features, objects.image, objects.box, strict=True):
        crop = Image.fromarray(data.images[number, top:bottom, left:right])
        pixels = to_float(np.asarray(crop.resize((8, 8), Image.Resampling.BILINEAR))[None])
        np.testing.assert_allclose(row, Means()(pixels)[0], atol=0.01)


def test_crops_of_many_images_come_in_batches() -> None:
    one = np.zeros((1, *SIZE), dtype=np.uint8)
    one[0, ::16, ::16] = 1
    one = one.repeat(12, 1).repeat(12, 2)[:, : SIZE[0], : SIZE[1]]
    data = split(np.repeat(one, 70, axis=0))
    objects = find_objects(data, CARD)
    assert len(objects.image) == 70
    extractor = Means()
    whole = crop_features(extractor, to_float(data.images).split(32), objects)
    assert extractor.seen == [(64, 3, 8, 8), (6, 3, 8, 8)]
    np.testing.assert_allclose(crop_features(Means(), to_float(data.images).split(7), objects), whole)


def test_scores_are_those_of_the_crops_and_few_have_none() -> None:
    generator = np.random.default_rng(0)
    real, fake = generator.normal(size=(2, 9, 6))
    fake += 1
    pixels = np.array([20000] * 1 + [5000] * 3 + [1000] * 5)
    objects = Objects(np.zeros(9, int), np.zeros((9, 4), int), pixels, 256 * 512, "pieces")
    found = object_scores(real, fake, objects, "lite0", subsets=3, subset_size=4)
    counts = {name: found.pop(f"n_objects_{name}") for name in GROUPS}
    assert counts == {"all": 9, "large": 1, "medium": 3, "small": 5}
    assert set(found) == {
        f"{kind}_lite0_objects_{name}" for kind in ("fid", "kid") for name in ("all", "medium", "small")
    }
    assert found["fid_lite0_objects_medium"] == pytest.approx(fid(real[1:4], fake[1:4]))
    assert found["kid_lite0_objects_small"] == pytest.approx(kid(real[4:], fake[4:], 3, 4)[0])
    same = object_scores(real, real, objects, "lite0")
    assert same["fid_lite0_objects_all"] == pytest.approx(0, abs=1e-9)


def test_no_object_at_all() -> None:
    data = split(np.zeros((2, *SIZE), dtype=np.uint8))
    objects = find_objects(data, CARD)
    features = crop_features(Means(), to_float(data.images).split(2), objects)
    assert features.shape == (0, 6)
    assert object_scores(features, features, objects, "means") == {f"n_objects_{name}": 0 for name in GROUPS}

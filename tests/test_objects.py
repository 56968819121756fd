"""Objects by hand: what is one, its box, its group, its crop, and what its scores are."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from raw_pairs import make_card
from torch import Tensor

from dpgan.data.pixels import to_float
from dpgan.data.prepare import Split
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.fid import fid, kid
from dpgan.evaluation.measure import Job, Jobs, photos
from dpgan.evaluation.objects import GROUPS, CropObserver, Objects, find_objects, measure_crops, object_scores

CARD = make_card(classes=[
    {"id": 0, "name": "sky", "color": (0, 0, 0), "evaluate": True},
    {"id": 26, "name": "car", "color": (0, 0, 1), "evaluate": True, "thing": True},
    {"id": 24, "name": "person", "color": (0, 0, 2), "evaluate": True, "thing": True},
])  # fmt: skip
SIZE = (64, 128)  # a sixteenth of 256x512: large above 625 pixels, small below 156.25, none below 6.25


class Means:
    """Stands in for a network: the mean colour and the mean upper half of an image."""

    name, dimension, side, digest, device = "means", 6, 8, "", torch.device("cpu")
    seen: list[tuple[int, ...]]

    def __init__(self) -> None:
        self.seen = []

    def to(self, device: torch.device) -> Means:
        return self

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


def crop_features(extractor: Means, data: Split, objects: Objects, batch: int) -> np.ndarray:
    jobs = Jobs(data.labels, data.images, np.arange(len(data.ids)), pixels=batch * SIZE[0] * SIZE[1])
    return measure_crops(CropObserver(photos, (0,), extractor, objects), jobs, Engine())[0]


def test_crops_are_boxes_resized_as_pillow_does(labels: np.ndarray) -> None:
    data = split(labels)
    objects = find_objects(data, CARD)
    extractor = Means()
    features = crop_features(extractor, data, objects, batch=2)
    assert extractor.seen == [(3, 3, 8, 8)]
    for row, number, (top, left, bottom, right) in zip(features, objects.image, objects.box, strict=True):
        crop = Image.fromarray(data.images[number, top:bottom, left:right])
        pixels = to_float(np.asarray(crop.resize((8, 8), Image.Resampling.BILINEAR))[None])
        np.testing.assert_allclose(row, Means()(pixels)[0], atol=0.01)


@pytest.mark.usefixtures("ray_session")
def test_batches_and_workers_change_nothing() -> None:
    labels = np.zeros((70, *SIZE), dtype=np.uint8)
    labels[::2, 10:30, 10:40] = 1
    labels[1::3, 40:50, 60:80] = 2
    data = split(labels)
    objects = find_objects(data, CARD)
    whole = crop_features(extractor := Means(), data, objects, batch=70)
    assert extractor.seen == [(58, 3, 8, 8)]
    np.testing.assert_allclose(crop_features(Means(), data, objects, batch=7), whole)
    jobs = Jobs(data.labels, data.images, np.arange(70), pixels=4 * SIZE[0] * SIZE[1])
    done: list[tuple[int, int]] = []
    report = lambda *facts: done.append(facts)  # noqa: E731
    with closing(Engine(workers=2)) as engine:
        spread = measure_crops(CropObserver(photos, (0, 1), Means(), objects), jobs, engine, report)
    assert done[0] == (0, 58)
    assert done[-1] == (58, 58)
    np.testing.assert_allclose(spread, [whole, whole])


def test_images_are_made_once_a_seed_and_not_without_objects(labels: np.ndarray) -> None:
    labels[1] = 0
    asked: list[tuple[tuple[int, ...], int]] = []

    def source(job: Job, seed: int) -> Tensor:
        asked.append((tuple(job.numbers), seed))
        return to_float(job.images)

    data = split(labels)
    objects = find_objects(data, CARD)
    jobs = Jobs(data.labels, data.images, np.arange(2), pixels=1)
    assert measure_crops(CropObserver(source, (3, 5), Means(), objects), jobs, Engine()).shape == (2, 2, 6)
    assert asked == [((0,), 3), ((0,), 5)]


def test_scores_are_those_of_the_crops_and_few_have_none() -> None:
    generator = np.random.default_rng(0)
    real, fake, other = generator.normal(size=(3, 9, 6))
    pixels = np.array([20000] * 1 + [5000] * 3 + [1000] * 5)
    objects = Objects(np.arange(9) // 2, np.zeros((9, 4), int), pixels, 256 * 512, "pieces")
    assert objects.counts() == {"all": 9, "large": 1, "medium": 3, "small": 5}
    fakes = np.stack([fake + 1, other + 1])
    found = object_scores(real, fakes, objects, 5, "lite0")
    scored = ("all", "medium", "small")
    assert set(found) == {f"{kind}_lite0_objects_{name}" for kind in ("fid", "kid") for name in scored}
    medium, small = found["fid_lite0_objects_medium"], found["kid_lite0_objects_small"]
    assert medium.value == pytest.approx(np.mean([fid(real[1:4], y[1:4]) for y in fakes]))
    assert small.value == pytest.approx(np.mean([kid(real[4:], y[4:]) for y in fakes]))
    assert (medium.n, small.n, small.seeds) == (3, 5, 2)
    low, high = medium.interval
    assert low < medium.value < high


def test_intervals_leave_out_images_with_all_their_objects() -> None:
    """Objects of one image resemble each other: ten of each of 20 images say less than 200 of 200 images."""
    generator = np.random.default_rng(0)
    own = generator.normal(size=(20, 6)).repeat(10, axis=0)
    real, fake = generator.normal(size=(200, 6)), (own + generator.normal(size=(200, 6)) / 10)[None]
    pixels, box = np.full(200, 1000), np.zeros((200, 4), int)

    def width(image: np.ndarray) -> float:
        objects = Objects(image, box, pixels, 256 * 512, "pieces")
        images = int(image.max()) + 1
        low, high = object_scores(real, fake, objects, images, "x")["fid_x_objects_all"].interval
        return high - low

    assert width(np.arange(20).repeat(10)) > 1.5 * width(np.arange(200))


def test_no_object_at_all() -> None:
    data = split(np.zeros((2, *SIZE), dtype=np.uint8))
    objects = find_objects(data, CARD)
    features = crop_features(Means(), data, objects, batch=2)
    assert features.shape == (0, 6)
    assert object_scores(features, features[None], objects, 2, "means") == {}
    assert objects.counts() == dict.fromkeys(GROUPS, 0)

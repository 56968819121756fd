"""Toyscapes scenes in the layouts in which Cityscapes, ADE20K and COCO-Stuff are published, ids and formats too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from conftest import ROOT
from PIL import Image

from dpgan.data.toyscapes import Scene, render_scene
from dpgan.labels import load_card

# Cityscapes id -> class of the other dataset that comes nearest; ids that toyscapes never draws are left out.
ADE20K = {
    4: "box", 7: "road", 8: "sidewalk", 9: "path", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "signboard", 21: "tree", 22: "grass", 23: "sky", 24: "person", 25: "animal", 26: "car",
    27: "truck", 28: "bus", 31: "van", 32: "minibike", 33: "bicycle",
}  # fmt: skip
COCO_STUFF = {
    4: "cardboard", 7: "road", 8: "pavement", 9: "gravel", 11: "building-other", 12: "wall-brick", 13: "fence",
    17: "metal", 19: "traffic light", 20: "stop sign", 21: "tree", 22: "grass", 23: "sky-other", 24: "person",
    25: "backpack", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


class Counts(NamedTuple):
    train: int
    val: int


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 1}
    Image.fromarray(pixels).save(path, **options)


def _each(counts: Counts, size: tuple[int, int], write: Callable[[str, int, Scene], None]) -> None:
    """Scenes 0.. for training, those that follow for validation, as `write_dataset` counts them."""
    for index in range(sum(counts)):
        write("train" if index < counts.train else "val", index, render_scene(0, index, size))


def write_cityscapes(folder: Path, counts: Counts, size: tuple[int, int] = (64, 128)) -> Path:
    """leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, with the pictures and polygons beside the ids."""
    palette = load_card("cityscapes", ROOT / "data")
    cities = {"train": ["aachen", "bochum"], "val": ["frankfurt"]}

    def write(split: str, index: int, scene: Scene) -> None:
        city = cities[split][index % len(cities[split])]
        name = f"{split}/{city}/{city}_{index:06d}_000019"
        _save(folder / f"leftImg8bit/{name}_leftImg8bit.png", scene.image)
        _save(folder / f"gtFine/{name}_gtFine_labelIds.png", scene.label)
        _save(folder / f"gtFine/{name}_gtFine_instanceIds.png", scene.instance)
        _save(folder / f"gtFine/{name}_gtFine_color.png", palette.colorize(palette.id_table[scene.label]))
        polygons = {"imgHeight": size[0], "imgWidth": size[1], "objects": []}
        (folder / f"gtFine/{name}_gtFine_polygons.json").write_text(json.dumps(polygons))

    _each(counts, size, write)
    return folder


def _table(name: str, classes: dict[int, str], void: int) -> np.ndarray:
    """uint8 [256]: raw id of dataset `name` by Cityscapes id."""
    ids = {info.name: info.id for info in load_card(name, ROOT / "data").classes}
    table = np.full(256, void, np.uint8)
    for cityscapes_id, other in classes.items():
        table[cityscapes_id] = ids[other]
    return table


def write_ade20k(folder: Path, counts: Counts, size: tuple[int, int] = (64, 128)) -> Path:
    """ADEChallengeData2016.zip: JPEG photos, 8-bit maps in which 0 is unknown."""
    table = _table("ade20k", ADE20K, void=0)

    def write(split: str, index: int, scene: Scene) -> None:
        where = {"train": "training", "val": "validation"}[split]
        _save(folder / f"images/{where}/ADE_{split}_{index:08d}.jpg", scene.image)
        _save(folder / f"annotations/{where}/ADE_{split}_{index:08d}.png", table[scene.label])

    _each(counts, size, write)
    (folder / "sceneCategories.txt").write_text("")
    return folder


def write_coco_stuff(folder: Path, counts: Counts, size: tuple[int, int] = (64, 128)) -> Path:
    """train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip: maps in which 255 is unlabeled."""
    table = _table("coco-stuff", COCO_STUFF, void=255)

    def write(split: str, index: int, scene: Scene) -> None:
        _save(folder / f"images/{split}2017/{index:012d}.jpg", scene.image)
        _save(folder / f"annotations/{split}2017/{index:012d}.png", table[scene.label])

    _each(counts, size, write)
    return folder


WRITERS = {"cityscapes": write_cityscapes, "ade20k": write_ade20k, "coco-stuff": write_coco_stuff}

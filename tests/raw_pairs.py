"""A tiny raw folder and its card, for the tests of the data stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dpgan.labels import Card


def make_card(**changes: object) -> Card:
    content = {
        "name": "tiny", "title": "Tiny", "licence": "none", "size": (32, 64), "preset": "toyscapes", "min_pairs": 2,
        "layout": {"image": "images/{split}/{id}.png", "label": "labels/{split}/{id}.png"},
        "splits": {"train": "train", "val": "test"},
        "classes": [
            {"id": 0, "name": "sky", "color": (0, 0, 255), "evaluate": True},
            {"id": 7, "name": "road", "color": (9, 9, 9), "evaluate": True},
            {"id": 255, "name": "void", "color": (0, 0, 0), "void": True},
        ],
    }  # fmt: skip
    return Card.model_validate({**content, **changes})


def make_raw(raw: Path, train: int = 3, val: int = 2) -> Path:
    """A clean raw folder: noise photos, label maps of sky over road with one void pixel."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", val)):
        for kind in ("images", "labels"):
            (raw / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)).save(raw / f"images/{split}/{i}.png")
            label = np.zeros((48, 96), np.uint8)
            label[24 + i :] = 7
            label[0, 0] = 255
            Image.fromarray(label).save(raw / f"labels/{split}/{i}.png")
    return raw

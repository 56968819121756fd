"""Small folders of photos and label maps, in any layout and encoding, for the tests of proposals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

IDS = [0, 7, 255]


COLORS = {0: (70, 130, 180), 7: (128, 64, 128), 255: (0, 0, 0)}


def ids_map(index: int, size: tuple[int, int] = (48, 96)) -> np.ndarray:
    """uint8 [H, W]: sky over road over a strip of void; no two alike."""
    label = np.zeros(size, np.uint8)
    label[8 + index :] = 7
    label[-4:] = 255
    return label


def as_colors(label: np.ndarray) -> np.ndarray:
    return np.array([COLORS[i] for i in IDS], np.uint8)[np.searchsorted(IDS, label)]


def as_palette(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label)
    image.putpalette([channel for i in range(256) for channel in COLORS.get(i, (1, 2, 3))])
    return image


def make(
    root: Path,
    image: str,
    label: str,
    splits: tuple[str, str] = ("train", "val"),
    counts: tuple[int, int] = (10, 8),
    write: Callable[[np.ndarray], np.ndarray | Image.Image] = lambda label: label,
) -> Path:
    """A folder of noise photos and label maps, named by two patterns."""
    rng = np.random.default_rng(0)
    for number in range(sum(counts)):
        where = {"split": splits[number >= counts[0]], "id": f"{number:03d}"}
        content = write(ids_map(number))
        label_file = content if isinstance(content, Image.Image) else Image.fromarray(content)
        photo = Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8))
        for pattern, picture in ((image, photo), (label, label_file)):
            path = root / pattern.format(**where)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return root


def simple(root: Path, write: Callable[[np.ndarray], np.ndarray | Image.Image] = lambda label: label) -> Path:
    return make(root, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", write=write)

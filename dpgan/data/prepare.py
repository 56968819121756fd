"""Resizing once: raw pairs into a few large memory-mapped arrays of photos and class indices.

Pillow's filters are those behind the field's published scores: bicubic for photos, nearest for label maps.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from PIL import Image

from dpgan.config import need
from dpgan.data.index import Progress, parallel
from dpgan.data.scan import decode, pixels_sha256
from dpgan.errors import UserError
from dpgan.files import new_folder
from dpgan.labels import Card


@dataclass(frozen=True)
class Split:
    """A prepared split; the arrays are memory-mapped and read-only."""

    images: np.ndarray  # uint8 [N, H, W, 3], RGB
    labels: np.ndarray  # uint8 [N, H, W], class indices
    ids: list[str]  # sample ids, "train/0001"


class _Job(NamedTuple):
    """A pair and its place in the arrays of its split."""

    split: str
    position: int
    image: str
    label: str
    image_sha256: str
    label_sha256: str


def _paths(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}_images.npy", folder / f"{split}_labels.npy"


def _checked(path: Path, sha256: str, mode: str | None) -> Image.Image:
    """A decoded file whose pixels are those that were indexed, and so validated."""
    image, fault, _ = decode(path)
    if image is not None and mode is not None:
        image = image.convert(mode)
    if image is None or pixels_sha256(image) != sha256:
        raise UserError(f"{path}: {fault or 'changed since it was indexed'}; run `dvc repro index` again")
    return image


def _pack(raw: Path, folder: Path, card: Card, job: _Job) -> None:
    """Resize one pair and write it to its place."""
    height, width = card.size
    photo = _checked(raw / job.image, job.image_sha256, mode="RGB").resize((width, height), Image.Resampling.BICUBIC)
    ids = _checked(raw / job.label, job.label_sha256, mode=None).resize((width, height), Image.Resampling.NEAREST)
    indices = card.id_table[np.asarray(ids)]
    if indices.min() < 0:
        raise UserError(f"{raw / job.label}: holds ids that are not in the card; `dvc repro validate` lists them")
    images, labels = (open_memmap(path, mode="r+") for path in _paths(folder, job.split))
    images[job.position] = photo
    labels[job.position] = indices


def _digest(frame: pd.DataFrame, card: Card) -> str:
    """sha256 that identifies the prepared arrays: decoded pixels of all pairs, the id table, the size."""
    digest = hashlib.sha256(card.id_table.tobytes() + str(card.size).encode())
    for row in frame.sort_values(["split", "id"]).itertuples():
        digest.update(f"{row.sample_id} {row.image_sha256} {row.label_sha256}\n".encode())
    return digest.hexdigest()


def _need_space(folder: Path, pairs: int, card: Card) -> None:
    """A full disk kills a process that writes to a memory map, without a word: so ask before."""
    needed = pairs * 4 * card.size[0] * card.size[1]
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: the prepared arrays need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def prepare(
    frame: pd.DataFrame,
    card: Card,
    raw: Path,
    folder: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> None:
    """Write every pair of a validated index, resized to the card's size, below `folder`.

    `{train,val}_images.npy` uint8 [N, H, W, 3], `{train,val}_labels.npy` uint8 [N, H, W] with class indices,
    and `meta.json`. The folder appears whole or not at all, and replaces one that is there. UserError where
    the index has errors, a file is no longer what was indexed, or the disk is too small.
    """
    for fault in frame["fault"].dropna():
        raise UserError(f"{raw}: {fault}; `dvc repro validate` lists what is wrong with the raw pairs")
    with new_folder(folder) as partial:
        _need_space(partial, len(frame), card)
        jobs, ids = [], {}
        for split, rows in frame.sort_values(["split", "id"]).groupby("split"):
            ids[str(split)] = list(rows["sample_id"])
            images, labels = _paths(partial, str(split))
            open_memmap(images, mode="w+", dtype=np.uint8, shape=(len(rows), *card.size, 3))
            open_memmap(labels, mode="w+", dtype=np.uint8, shape=(len(rows), *card.size))
            columns = zip(*(rows[name] for name in _Job._fields[2:]), strict=True)
            jobs += [_Job(str(split), position, *values) for position, values in enumerate(columns)]
        for _ in parallel(functools.partial(_pack, raw, partial, card), jobs, progress, workers):
            pass
        meta = {"dataset": card.name, "size": card.size, "ids": ids, "card": card.digest}
        meta["data_hash"] = _digest(frame, card)
        (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _meta(folder: Path) -> dict[str, Any]:
    return json.loads(need(folder / "meta.json", "prepare").read_text())


def open_prepared(folder: Path, split: str) -> Split:
    """The prepared `train` or `val` split; UserError where `prepare` has not run."""
    ids = _meta(folder)["ids"][split]
    images, labels = (np.load(path, mmap_mode="r") for path in _paths(folder, split))
    return Split(images, labels, ids)


def data_hash(folder: Path) -> str:
    """The version of the prepared data: equal where pixels, ids, classes and size are."""
    return _meta(folder)["data_hash"]

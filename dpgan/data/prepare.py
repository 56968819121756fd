"""Resizing once: raw pairs into a few large memory-mapped arrays of photos and class indices.

Pillow's filters are those behind the field's published scores: bicubic for photos, nearest for label maps.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from PIL import Image

from dpgan import identities
from dpgan.checks import Pairs
from dpgan.cluster import each
from dpgan.config import need
from dpgan.data.decode import Decoded, codes_fault, decode, decode_codes, decode_ids, pixels_sha256
from dpgan.data.facts import dataset_hash
from dpgan.data.index import SAVED_EVERY
from dpgan.errors import UserError
from dpgan.labels import Card

Progress = Callable[[int, int], None]  # (done, total)

META = "meta.json"
FILLED = "filled"  # in an unfinished folder: a line "split position" for every pair that is in the arrays


@dataclass(frozen=True)
class Split:
    """A prepared split; the arrays are memory-mapped and read-only."""

    images: np.ndarray  # uint8 [N, H, W, 3], RGB
    labels: np.ndarray  # uint8 [N, H, W], class indices
    ids: list[str]  # sample ids, "train/0001"
    instances: np.ndarray | None = None  # uint16 [N, H, W], of val if the dataset has them: see `decode_codes`


class _Job(NamedTuple):
    """A pair and its place in the arrays of its split."""

    split: str
    position: int
    image: str
    label: str
    instance: str | None  # read where the split has an array of them
    image_sha256: str
    label_sha256: str
    instance_sha256: str | None


ARRAYS: dict[str, tuple[Any, tuple[int, ...]]] = {  # of a split: type, and shape behind [N, H, W]
    "images": (np.uint8, (3,)),
    "labels": (np.uint8, ()),
    "instances": (np.uint16, ()),
}


def _kinds(split: str, pairs: pd.DataFrame) -> list[str]:
    """The arrays of a split: instances for val alone (training reads none), where every pair has a map of them."""
    instances = split == "val" and bool(pairs["instance"].notna().all())
    return [kind for kind in ARRAYS if kind != "instances" or instances]


def _where_read(rows: pd.DataFrame, name: str, kinds: dict[str, list[str]]) -> pd.Series:
    """A column about instance maps, None for splits without an array of them."""
    columns = zip(rows["split"], rows[name], strict=True)
    read = [value if "instances" in kinds[split] else None for split, value in columns]
    return pd.Series(read, index=rows.index, dtype=object)


def _path(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}_{kind}.npy"


def _checked(path: Path, found: Decoded, sha256: str | None) -> Image.Image:
    """A decoded file whose pixels are those that were indexed, and so validated."""
    if found.image is None or pixels_sha256(found.image) != sha256:
        what = found.fault or "not the pixels that were indexed: the file changed, or the library that decodes it"
        raise UserError(f"{path}: {what}; `dvc repro --force prepare` indexes it again")
    return found.image


def _decode_rgb(path: Path) -> Decoded:
    found = decode(path)
    return found if found.image is None else found._replace(image=found.image.convert("RGB"))


def _shrink_photo(photo: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB image at `size` (height, width): uint8 [H, W, 3]."""
    return np.asarray(photo.resize(size[::-1], Image.Resampling.BICUBIC))


def _shrink_map(labels: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """A map of ids or codes at `size` (height, width): [H, W] of its type."""
    return np.asarray(labels.resize(size[::-1], Image.Resampling.NEAREST))


@cache
def resizing() -> str:
    """sha256 of what resizing makes of noise.

    Other filters, another Pillow that rounds differently, or changed code of ours give another one, without a version
    that somebody must remember to raise.
    """
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    codes = noise[..., 1].astype(np.uint16) * 256
    digest = hashlib.sha256()
    for size in ((32, 64), (23, 19), (128, 96)):
        maps = [_shrink_map(Image.fromarray(part), size) for part in (noise[..., 0], codes)]
        for part in (_shrink_photo(Image.fromarray(noise), size), *maps):
            digest.update(f"{part.shape} {part.dtype} ".encode() + part.tobytes())
    return digest.hexdigest()


def _resize(raw: Path, card: Card, job: _Job) -> list[np.ndarray]:
    """A pair at the card's size, in the order of ARRAYS: without instances if the job has none."""
    photo, label = raw / job.image, raw / job.label
    pixels = _shrink_photo(_checked(photo, _decode_rgb(photo), job.image_sha256), card.size)
    full = _checked(label, decode_ids(label, card.label_format), job.label_sha256)
    indices = card.id_table[_shrink_map(full, card.size)]
    if indices.min() < 0:
        raise UserError(f"{label}: holds ids that are not in the card; `dvc repro validate` lists them")
    found = [pixels, indices.astype(np.uint8)]
    if job.instance is not None:
        path = raw / job.instance
        codes = _checked(path, decode_codes(path), job.instance_sha256)
        if fault := codes_fault(np.asarray(codes), np.asarray(full), card.label_format):
            raise UserError(f"{path}: {fault}; `dvc repro validate` lists all such maps")
        found.append(_shrink_map(codes, card.size))
    return found


def _digest(frame: pd.DataFrame, card: Card) -> str:
    return identities.prepared_data(dataset_hash(frame), card.id_table.tobytes(), card.size, resizing())


def _need_space(folder: Path, pairs: int, card: Card) -> None:
    """A full disk kills a process that writes to a memory map, without a word: so ask before."""
    needed = pairs * 6 * card.size[0] * card.size[1]  # bytes a pixel, with instances
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: the prepared arrays need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


class _Array:
    """An .npy file to write rows into; a memory map would keep all of it in this process's memory."""

    def __init__(self, path: Path) -> None:
        self.offset: int = np.load(path, mmap_mode="r").offset
        self.file = path.open("r+b")

    def write(self, position: int, row: np.ndarray) -> None:
        self.file.seek(self.offset + position * row.nbytes)
        self.file.write(row.tobytes())

    def save(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def _begin(folder: Path, meta: dict[str, Any], card: Card) -> set[tuple[str, int]]:
    """The places that are filled already in a `folder` of the same `meta`; else an empty one with room for all."""
    content = json.dumps(meta, indent=1) + "\n"
    if (folder / META).is_file() and (folder / META).read_text() == content:
        filled = (line.split() for line in (folder / FILLED).read_text().splitlines())
        return {(split, int(position)) for split, position in filled}
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _need_space(folder.parent, sum(map(len, meta["ids"].values())), card)
    folder.mkdir()
    for split, ids in meta["ids"].items():
        for kind in meta["arrays"][split]:
            dtype, tail = ARRAYS[kind]
            open_memmap(_path(folder, split, kind), mode="w+", dtype=dtype, shape=(len(ids), *card.size, *tail))
    (folder / FILLED).touch()
    (folder / META).write_text(content)
    return set()


def prepare(
    frame: pd.DataFrame,
    card: Card,
    raw: Path,
    folder: Path,
    progress: Progress | None = None,
    workers: int | None = None,
    left_out: Collection[str] = (),
) -> None:
    """Write every pair of a validated index, resized to the card's size, below `folder`, on all CPUs of Ray.

    `left_out` are sample ids that stay out (the quarantine).
    `{train,val}_images.npy` uint8 [N, H, W, 3], `{train,val}_labels.npy` uint8 [N, H, W] with class indices,
    `val_instances.npy` uint16 [N, H, W] where all pairs of val have instance maps, and `meta.json`. The folder appears
    whole or not at all, and replaces one that is there; what was interrupted goes on where it was. UserError where a
    pair cannot be used, a file is no longer what was indexed, or the disk is too small.
    """
    dataset = dataset_hash(frame)
    frame = frame[~frame["sample_id"].isin(list(left_out))]
    for row in frame[frame["image_sha256"].isna() | frame["label_sha256"].isna()].itertuples():
        raise UserError(f"{raw}: {row.sample_id} cannot be used; `dvc repro validate` says why")
    rows = frame.sort_values(["split", "id"])
    kinds = {str(split): _kinds(str(split), pairs) for split, pairs in rows.groupby("split")}
    rows = rows.assign(**{name: _where_read(rows, name, kinds) for name in ("instance", "instance_sha256")})
    splits = {str(split): pairs for split, pairs in rows.groupby("split")}
    ids = {split: list(pairs["sample_id"]) for split, pairs in splits.items()}
    meta = {"dataset": card.name, "size": card.size, "ids": ids, "arrays": kinds, "card": card.digest,
            "dataset_hash": dataset, "resizing": resizing(), "data_hash": _digest(rows, card)}  # fmt: skip
    part = folder.with_name(f".{folder.name}.part")
    filled = _begin(part, meta, card)
    arrays = {split: [_Array(_path(part, split, kind)) for kind in kinds[split]] for split in ids}
    jobs = []
    for split, pairs in splits.items():
        columns = zip(*(pairs[name] for name in _Job._fields[2:]), strict=True)
        jobs += [_Job(split, position, *values) for position, values in enumerate(columns)]
    jobs = [job for job in jobs if job[:2] not in filled]
    done, total, unsaved = len(filled), len(rows), list[_Job]()

    def save() -> None:
        for array in chain(*arrays.values()):
            array.save()
        with (part / FILLED).open("a") as file:
            file.writelines(f"{job.split} {job.position}\n" for job in unsaved)
        unsaved.clear()

    if progress:
        progress(done, total)
    try:
        with closing(each(partial(_resize, raw.absolute(), card), jobs, workers)) as pairs_of:
            for nth, pixels in pairs_of:
                job = jobs[nth]
                for array, values in zip(arrays[job.split], pixels, strict=True):
                    array.write(job.position, values)
                unsaved.append(job)
                done += 1
                if len(unsaved) == SAVED_EVERY:
                    save()
                if progress:
                    progress(done, total)
    finally:
        save()
        for array in chain(*arrays.values()):
            array.file.close()
    (part / FILLED).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _meta(folder: Path) -> dict[str, Any]:
    path = need(folder / META, "prepare")
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); `dvc repro --force prepare` makes it anew") from None
    if not {"arrays", "resizing"} <= meta.keys():
        raise UserError(f"{folder}: prepared by an earlier version of dpgan; `dvc repro --force prepare` makes it anew")
    return meta


def open_prepared(folder: Path, split: str) -> Split:
    """The prepared `train` or `val` split; UserError where `prepare` has not run."""
    meta = _meta(folder)
    arrays = {kind: np.load(_path(folder, split, kind), mmap_mode="r") for kind in meta["arrays"][split]}
    return Split(**arrays, ids=meta["ids"][split])


def offered(train: Split, val: Split, card: Card) -> Pairs:
    """What prepared splits offer to training and scoring."""
    scored = any(bool(np.isin(labels, card.evaluated).any()) for labels in val.labels)  # the first one mostly says so
    return Pairs(len(train.ids), len(val.ids), scored, val.instances is not None)


def data_hash(folder: Path) -> str:
    """The version of the prepared data: equal where pixels, ids, classes and size are."""
    return _meta(folder)["data_hash"]


def hashes(folder: Path) -> dict[str, str]:
    """Both versions: `dataset_hash` of the raw pairs, whatever the card makes of them, and `data_hash`."""
    return {name: _meta(folder)[name] for name in ("dataset_hash", "data_hash")}

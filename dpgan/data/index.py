"""The index: one row a pair of photo and label map, with all that the checks need to know about it.

Every file is fully decoded here, so that nothing behind this stage meets a corrupt one. What is wrong with a
pair stands in its row (`fault`); whether that stops the pipeline is `validation`'s decision.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from dpgan.errors import UserError
from dpgan.labels import Card, Role

Progress = Callable[[int, int], None]  # (done, total)

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # "train/0001"
        ("split", pa.string()),  # role: train or val
        ("id", pa.string()),  # what {id} stands for; may span folders
        ("image", pa.string()),  # paths relative to the raw folder, POSIX; null where there is no file
        ("label", pa.string()),
        ("instance", pa.string()),
        ("image_width", pa.int32()),  # pixels; null where the file cannot be decoded
        ("image_height", pa.int32()),
        ("image_mode", pa.string()),  # Pillow's name
        ("label_width", pa.int32()),
        ("label_height", pa.int32()),
        ("label_mode", pa.string()),
        ("histogram", pa.list_(pa.int64())),  # pixels by raw id 0..255; null where the map holds no ids
        ("image_sha256", pa.string()),  # of size and decoded pixels: what training sees, not how it is stored
        ("label_sha256", pa.string()),
        ("fault", pa.string()),  # why the pair cannot be used; null where it can
        ("note", pa.string()),  # what the decoder warned about; the pair can be used
    ]
)

PHOTO_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK"}  # eight bits a channel: RGB without loss of range
LABEL_MODES = {"L", "P"}  # one byte a pixel, which is the id; Pillow gives a palette image's indices

Job = TypeVar("Job")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """`function` of every job, in order, over `workers` processes (default: all cores; 1: in this process).

    The first exception of a worker is raised here and cancels the rest.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield from _counted(map(function, jobs), len(jobs), progress)
        return
    # Not forked: a fork copies the locks of the parent's threads (progress bars, BLAS) in whatever state
    # they are in, and hangs when one is held.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        chunk = max(1, min(32, len(jobs) // (4 * workers)))
        yield from _counted(pool.map(function, jobs, chunksize=chunk), len(jobs), progress)


def _end_with_parent() -> None:
    """In a worker: end when the parent is killed, instead of waiting for its next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _counted(results: Iterator[Result], total: int, progress: Progress | None) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        yield result
        if progress:
            progress(done, total)


class Pair(NamedTuple):
    """What the folder listing knows of a pair; paths are relative to the raw folder, None where missing."""

    split: Role
    id: str
    image: str | None
    label: str | None
    instance: str | None
    missing: str | None  # the fault, where a partner is missing


class Decoded(NamedTuple):
    """A fully decoded file, or why it is not one; `note` holds what the decoder warned about."""

    image: Image.Image | None
    fault: str | None
    note: str | None


def decode(path: Path) -> Decoded:
    """Decode a whole image file. Only a full `load` finds a truncated JPEG: headers and `verify` do not."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Image.open(path) as image:
                image.load()
        except UnidentifiedImageError:
            return Decoded(None, "cannot be decoded: not an image file", None)
        except Exception as error:  # Pillow's decoders let any exception through on bad bytes
            return Decoded(None, f"cannot be decoded: {error or type(error).__name__}", None)
    return Decoded(image, None, "; ".join(dict.fromkeys(str(w.message) for w in said)) or None)


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of an image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _photo_facts(path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """Columns of a photo, its fault, its note."""
    image, fault, note = decode(path)
    if image is None:
        return {}, fault, note
    facts = {"image_width": image.width, "image_height": image.height, "image_mode": image.mode}
    if image.mode not in PHOTO_MODES:
        return facts, f"photo has mode {image.mode}; it must have 8 bits a channel", note
    return {**facts, "image_sha256": pixels_sha256(image.convert("RGB"))}, None, note


def _label_facts(path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """Columns of a label map, its fault, its note."""
    image, fault, note = decode(path)
    if image is None:
        return {}, fault, note
    facts = {"label_width": image.width, "label_height": image.height, "label_mode": image.mode}
    if image.mode not in LABEL_MODES:
        return (
            facts,
            f"label map has mode {image.mode}; it must be 8-bit grey or palette, one id a pixel",
            note,
        )
    return {**facts, "histogram": image.histogram(), "label_sha256": pixels_sha256(image)}, None, note


def _row(raw: Path, pair: Pair) -> dict[str, Any]:
    """One row of the index: a pair's files decoded, measured and hashed."""
    row: dict[str, Any] = {**pair._asdict(), "sample_id": f"{pair.split}/{pair.id}"}
    faults: list[str | None] = [row.pop("missing")]
    notes: list[str | None] = []
    for relative, facts_of in ((pair.image, _photo_facts), (pair.label, _label_facts)):
        if relative is not None:
            facts, fault, note = facts_of(raw / relative)
            row.update(facts)
            faults.append(fault and f"{relative}: {fault}")
            notes.append(note and f"{relative}: {note}")
    row["fault"], row["note"] = ("; ".join(filter(None, texts)) or None for texts in (faults, notes))
    return row


def _listing(raw: Path, pattern: str, split: str) -> dict[str, str]:
    """Files below `raw` that fit a layout pattern: relative POSIX path by id."""
    pattern = pattern.replace("{split}", split)
    before, after = pattern.split("{id}", maxsplit=1)
    fits = re.compile(re.escape(before) + "(.+)" + re.escape(after))
    found = {}
    for folder, _, names in os.walk(raw / before.rpartition("/")[0], followlinks=True):
        for name in names:
            path = (Path(folder) / name).relative_to(raw).as_posix()
            if match := fits.fullmatch(path):
                found[match[1]] = path
    return found


def _no_files(card: Card, raw: Path, pattern: str, split: str) -> UserError:
    """No file fits a pattern: say what was looked for, and what lies there instead."""
    looked_for = pattern.replace("{split}", split)
    files = (p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    found = ", ".join(name for name, _ in zip(files, range(5), strict=False))
    return UserError(
        f"{raw}: no file fits {looked_for!r}, the layout of data/{card.name}/dataset.yaml; "
        f"found {'instead: ' + found if found else 'no file at all'}. "
        f"Lay the files out like that, or mend `raw` in params.yaml or `layout` in the card"
    )


def _pairs(card: Card, raw: Path) -> list[Pair]:
    """Every pair of the layout, sorted by split and id; a file whose partner is missing is a pair too."""
    if not raw.is_dir():
        raise UserError(
            f"{raw}: no such folder; set `raw` in params.yaml to the folder that holds the raw pairs of "
            f"{card.name} (data/{card.name}/README.md says how to obtain them)"
        )
    pairs = []
    for role, split in sorted(card.splits.items()):
        layout = card.layout
        images, labels = (_listing(raw, pattern, split) for pattern in (layout.image, layout.label))
        for found, pattern in ((images, layout.image), (labels, layout.label)):
            if not found:
                raise _no_files(card, raw, pattern, split)
        instances = _listing(raw, layout.instance, split) if layout.instance else {}
        for id_ in sorted(images.keys() | labels.keys()):
            missing = None
            if id_ not in labels:
                expected = layout.label.replace("{split}", split).replace("{id}", id_)
                missing = f"{images[id_]}: has no label map (expected {expected})"
            elif id_ not in images:
                expected = layout.image.replace("{split}", split).replace("{id}", id_)
                missing = f"{labels[id_]}: has no photo (expected {expected})"
            pairs.append(Pair(role, id_, images.get(id_), labels.get(id_), instances.get(id_), missing))
    return pairs


def _frame(table: pa.Table) -> pd.DataFrame:
    """The table with None, never NaN, where a text is missing, and nullable integers."""
    integers = {field.name for field in SCHEMA if pa.types.is_integer(field.type)}
    return pd.DataFrame(
        {
            name: pd.Series(table[name].to_pylist(), dtype="Int32" if name in integers else object)
            for name in SCHEMA.names
        }
    )


def scan(card: Card, raw: Path, progress: Progress | None = None, workers: int | None = None) -> pd.DataFrame:
    """The index of a raw folder: columns of `SCHEMA`, one row a pair, sorted by split and id.

    Decodes every file, in parallel processes. Bad pairs are rows with a `fault`; UserError only where the
    folder is missing or nothing in it fits the card's layout.
    """
    rows = list(parallel(functools.partial(_row, raw), _pairs(card, raw), progress, workers))
    return _frame(pa.Table.from_pylist(rows, schema=SCHEMA))


def write_index(frame: pd.DataFrame, path: Path) -> None:
    """Write the index as parquet, whole or not at all; equal content gives equal bytes."""
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False).replace_schema_metadata(None)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, aside)
    aside.replace(path)


def read_index(path: Path) -> pd.DataFrame:
    """The index as `scan` gave it."""
    return _frame(pq.read_table(path))

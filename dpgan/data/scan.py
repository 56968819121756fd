"""One pair of photo and label map, fully decoded: what the index says of it.

Every file is decoded to its last byte here, so that nothing behind this stage meets a corrupt one.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from dpgan.data.layout import Pair
from dpgan.labels import Card

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


def scan_pair(card: Card, raw: Path, pair: Pair) -> dict[str, Any]:
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

"""One pair of photo and label map, fully decoded: what the index says of it.

Every file is decoded to its last byte here, so that nothing behind this stage meets a corrupt one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dpgan.data.decode import (
    bits,
    codes_fault,
    decode,
    decode_codes,
    encoding_fault,
    ids_of,
    orientation,
    oversize,
    pixels_sha256,
    unknown_colors,
)
from dpgan.data.layout import Pair
from dpgan.labels import LabelFormat

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # "train/0001"
        ("split", pa.string()),  # role: train or val
        ("id", pa.string()),  # what {id} stands for; may span folders
        ("image", pa.string()),  # paths relative to the raw folder, POSIX; null where there is no file
        ("label", pa.string()),
        ("instance", pa.string()),
        ("missing", pa.string()),  # which file of the pair is not there
        ("broken", pa.string()),  # which file cannot be decoded, and why
        ("oversize", pa.string()),  # which file has too many pixels to be decoded
        ("image_width", pa.int32()),  # pixels; null where the file cannot be decoded
        ("image_height", pa.int32()),
        ("image_mode", pa.string()),  # Pillow's name
        ("image_bits", pa.int32()),  # per channel, as stored
        ("image_orientation", pa.int32()),  # EXIF: 1 upright, 2..8 turned or mirrored; null where it does not say
        ("image_fault", pa.string()),  # why a decoded photo cannot be used; null where it can
        ("image_sha256", pa.string()),  # of size and decoded pixels: what training sees, not how it is stored
        ("image_dhash", pa.string()),  # hex: 64 bits, is a pixel of the photo at 9x8 brighter than its left neighbour
        ("image_dhash_mirrored", pa.string()),  # the same of the photo mirrored, left to right
        ("image_grey", pa.string()),  # hex: the photo's grey values at GREY x GREY
        ("label_width", pa.int32()),
        ("label_height", pa.int32()),
        ("label_mode", pa.string()),
        ("label_bits", pa.int32()),
        ("label_orientation", pa.int32()),
        ("label_fault", pa.string()),  # why it holds no ids, in the card's encoding; null where it does
        ("label_sha256", pa.string()),  # of size and raw ids
        ("histogram", pa.list_(pa.int64())),  # pixels by raw id 0..255; null where the map holds no ids
        ("unknown_colors", pa.string()),  # encoding `colors`: colours of no class, with their pixels
        ("ramps", pa.float64()),  # share of the steps between neighbouring ids that lead over a third id
        ("instance_width", pa.int32()),
        ("instance_height", pa.int32()),
        ("instance_sha256", pa.string()),  # of size and codes
        ("instance_fault", pa.string()),  # why it holds no codes, or it and the label map cannot both be right
        ("note", pa.string()),  # what the decoder warned about; the pair can be used
    ]
)

GREY = 8  # side of the grey thumbnail that confirms near-duplicates
FEW_STEPS = 64  # steps between ids below which a map says nothing about smooth resizing
# Of the steps between ids along the rows of a map, the share that leads over a third id (`ramps`).
# Clean CamVid: 0.03 at most in 468 maps; clean toyscapes at 64x128: 0.10 in 1200. After bilinear, bicubic or Lanczos
# resizing, up or down, or JPEG at quality 95: 0.22 at least.
MAX_RAMPS = 0.15
PHOTO_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK"}  # eight bits a channel: RGB without loss of range


def ramps(ids: np.ndarray) -> float:
    """Share of the steps between neighbours in the rows of uint8 [H, W] that lead up or down over a third id.

    Smooth resizing and JPEG turn every edge a|c into a, b, c with b in between; in a map that somebody drew only
    things one pixel wide look like that. A share of the steps, not of the pixels, so that neither the size of the map
    nor how busy it is matters; maps with few steps count as if they had `FEW_STEPS`.
    """
    left, middle, right = ids[:, :-2], ids[:, 1:-1], ids[:, 2:]
    between = ((left < middle) & (middle < right)) | ((left > middle) & (middle > right))
    steps = int(np.count_nonzero(ids[:, 1:] != ids[:, :-1]))
    return int(np.count_nonzero(between)) / max(steps, FEW_STEPS)


def _photo_facts(path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """Columns of a photo, why it cannot be decoded, its note."""
    image, broken, note = decode(path)
    if image is None:
        return {}, broken, note
    facts = {
        "image_width": image.width,
        "image_height": image.height,
        "image_mode": image.mode,
        "image_bits": (depth := bits(path, image)),
        "image_orientation": orientation(image),
    }
    if depth > 8 or image.mode not in PHOTO_MODES:
        what = f"is {depth}-bit {image.mode}" if image.mode in PHOTO_MODES else f"has mode {image.mode}"
        return {**facts, "image_fault": f"{what}; a photo has 8 bits per channel"}, None, note
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    grey = rgb.convert("L").resize((9 * 8, 8 * 8), Image.Resampling.BOX)  # once from many pixels, twice from few
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    return {
        **facts,
        "image_sha256": pixels_sha256(rgb),
        "image_dhash": _difference_hash(small),
        "image_dhash_mirrored": _difference_hash(small[:, ::-1]),
        "image_grey": grey.resize((GREY, GREY), Image.Resampling.BOX).tobytes().hex(),
    }, None, note  # fmt: skip


def _difference_hash(small: np.ndarray) -> str:
    """Hex of 64 bits: whether a pixel of uint8 [8, 9] is brighter than its left neighbour."""
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _label_facts(path: Path, form: LabelFormat) -> tuple[dict[str, Any], np.ndarray | None, str | None, str | None]:
    """Columns of a label map, its raw ids, why it cannot be decoded, its note."""
    image, broken, note = decode(path)
    if image is None:
        return {}, None, broken, note
    facts = {
        "label_width": image.width,
        "label_height": image.height,
        "label_mode": image.mode,
        "label_bits": bits(path, image),
        "label_orientation": orientation(image),
        "label_fault": encoding_fault(path, image, form.encoding),
    }
    if facts["label_fault"]:
        return facts, None, None, note
    ids = ids_of(image, form)
    pixels = np.asarray(ids)
    return {
        **facts,
        "label_sha256": pixels_sha256(ids),
        "histogram": ids.histogram(),
        "unknown_colors": unknown_colors(image, form) if form.encoding == "colors" else None,
        "ramps": ramps(pixels),
    }, pixels, None, note  # fmt: skip


def _instance_facts(path: Path, ids: np.ndarray | None, form: LabelFormat) -> tuple[dict[str, Any], str | None]:
    """Columns of an instance map, its note. ids: raw ids of its label map; None when that holds none."""
    image, fault, note = decode_codes(path)
    if image is None:
        return {"instance_fault": fault}, note
    return {
        "instance_width": image.width,
        "instance_height": image.height,
        "instance_sha256": pixels_sha256(image),
        "instance_fault": None if ids is None else codes_fault(np.asarray(image), ids, form),
    }, note  # fmt: skip


def scan_pair(form: LabelFormat, raw: Path, pair: Pair) -> dict[str, Any]:
    """One row of the index: a pair's files decoded, measured and hashed."""
    row: dict[str, Any] = {**pair._asdict(), "sample_id": f"{pair.split}/{pair.id}"}
    ids = None
    broken: list[str] = []
    large: list[str] = []
    notes: list[str] = []
    for relative, is_photo in ((pair.image, True), (pair.label, False)):
        if relative is None:
            continue
        if is_photo:
            facts, fault, note = _photo_facts(raw / relative)
        else:
            facts, ids, fault, note = _label_facts(raw / relative, form)
        row.update(facts)
        if fault:
            (large if oversize(raw / relative) else broken).append(f"{relative}: {fault}")
        notes += [f"{relative}: {note}"] if note else []
    if pair.instance is not None:
        facts, note = _instance_facts(raw / pair.instance, ids, form)
        row.update(facts)
        notes += [f"{pair.instance}: {note}"] if note else []
    row["broken"], row["oversize"] = "; ".join(broken) or None, "; ".join(large) or None
    row["note"] = "; ".join(notes) or None
    return row

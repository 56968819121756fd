"""One pair of photo and label map, fully decoded: what the index says of it.

Every file is decoded to its last byte here, so that nothing behind this stage meets a corrupt one.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError

from dpgan.data.layout import Pair
from dpgan.labels import Card, Encoding

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
        ("image_width", pa.int32()),  # pixels; null where the file cannot be decoded
        ("image_height", pa.int32()),
        ("image_mode", pa.string()),  # Pillow's name
        ("image_bits", pa.int32()),  # a channel, as stored
        ("image_orientation", pa.int32()),  # EXIF: 1 upright, 2..8 turned or mirrored; null where it does not say
        ("image_fault", pa.string()),  # why a decoded photo cannot be used; null where it can
        ("image_sha256", pa.string()),  # of size and decoded pixels: what training sees, not how it is stored
        ("image_dhash", pa.string()),  # hex: 64 bits, is a pixel of the photo at 9x8 brighter than its left neighbour
        ("image_grey", pa.string()),  # hex: the photo's grey values at GREY x GREY
        ("label_width", pa.int32()),
        ("label_height", pa.int32()),
        ("label_mode", pa.string()),
        ("label_bits", pa.int32()),
        ("label_fault", pa.string()),  # why it holds no ids, in the card's encoding; null where it does
        ("label_sha256", pa.string()),  # of size and raw ids
        ("histogram", pa.list_(pa.int64())),  # pixels by raw id 0..255; null where the map holds no ids
        ("unknown_colors", pa.string()),  # encoding `colors`: colours of no class, with their pixels
        ("ramps", pa.float64()),  # share of the steps between neighbouring ids that lead over a third id
        ("instance_fault", pa.string()),  # why the instance map and the label map cannot both be right
        ("note", pa.string()),  # what the decoder warned about; the pair can be used
    ]
)

GREY = 8  # side of the grey thumbnail that confirms near-duplicates
LOST = 512  # zero bytes in a row: a sector of a disk
FEW_STEPS = 64  # steps between ids below which a map says nothing about smooth resizing
# Of the steps between ids along the rows of a map, the share that leads over a third id (`ramps`).
# Clean CamVid: 0.03 at most in 468 maps; clean toyscapes at 64x128: 0.10 in 1200. After bilinear, bicubic or Lanczos
# resizing, up or down, or JPEG at quality 95: 0.22 at least.
MAX_RAMPS = 0.15
PHOTO_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK"}  # eight bits a channel: RGB without loss of range
LABEL_MODES: dict[Encoding, str] = {"ids": "L", "palette": "P", "colors": "RGB"}
ENCODING_OF = {mode: encoding for encoding, mode in LABEL_MODES.items()}
COLORS_TOLD = 4  # unknown colours that are named, the most frequent first


class Decoded(NamedTuple):
    """A fully decoded file, or why it is not one; `note` holds what the decoder warned about."""

    image: Image.Image | None
    fault: str | None
    note: str | None


def decode(path: Path) -> Decoded:
    """Decode a whole image file. Only a full `load` finds a truncated JPEG: headers and `verify` do not.

    libjpeg mends damage inside a JPEG without a word. A block of zero bytes, where a download or a disk lost one, is
    told as a note: a photo that is one colour all over may hold one, too.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Image.open(path) as image:
                image.load()
        except UnidentifiedImageError:
            return Decoded(None, "cannot be decoded: not an image file", None)
        except Exception as error:  # Pillow's decoders let any exception through on bad bytes
            return Decoded(None, f"cannot be decoded: {error or type(error).__name__}", None)
    notes = list(dict.fromkeys(str(w.message) for w in said))
    if image.format == "JPEG" and bytes(LOST) in path.read_bytes():
        notes.append(f"{LOST} zero bytes in a row: part of the file may be lost")
    return Decoded(image, None, "; ".join(notes) or None)


def decode_ids(path: Path, card: Card) -> Decoded:
    """Decode a label map into its raw ids: an image of mode L, [H, W], as `Card.id_table` reads them.

    A pixel of an unknown colour (encoding `colors`) gets an id that the card does not have.
    """
    image, fault, note = decode(path)
    if image is not None and (fault := encoding_fault(path, image, card.encoding)) is None:
        image = _ids(image, card)
    return Decoded(None if fault else image, fault, note)


def bits(path: Path, image: Image.Image) -> int:
    """Bits a channel as stored. Pillow's mode hides 2- and 4-bit grey, whose values it scales to 0..255."""
    with path.open("rb") as file:
        header = file.read(25)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        return header[24]
    return {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}.get(image.mode, 8)


def encoding_fault(path: Path, image: Image.Image, encoding: Encoding) -> str | None:
    """Why a decoded label map does not hold ids in the card's encoding, and what would help; None where it does."""
    depth, mode = bits(path, image), image.mode
    if image.format in ("JPEG", "MPO"):
        return "is a JPEG, whose compression changes ids; get the maps in a lossless format"
    if (mode in ("1", "L", "RGB") and depth != 8) or mode.startswith(("I", "F")):
        what = "grey" if mode != "RGB" else "RGB"
        return f"is {depth}-bit {what}; save its ids as 8 bits a pixel"
    if mode in ("LA", "PA", "RGBA"):
        return f"has an alpha channel (mode {mode}); drop it: `Image.open(FILE).convert('{mode[:-1]}')`"
    if mode == LABEL_MODES[encoding]:
        return None
    if mode == "RGB" and len({channel.tobytes() for channel in image.split()}) == 1:
        return "is grey, saved as RGB; save one channel: `Image.open(FILE).getchannel(0)`"
    meant = f"; set `encoding: {ENCODING_OF[mode]}` in the card if all are" if mode in ENCODING_OF else ""
    return f"has mode {mode}, where `encoding: {encoding}` of the card means {LABEL_MODES[encoding]}{meant}"


@lru_cache(maxsize=1)
def _color_table(colors: tuple[tuple[int, int, int], ...], ids: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """uint8 [2^24]: raw id by colour 0xrrggbb, and the id that stands for all others: the first that is free."""
    unknown = next(i for i in range(256) if i not in ids)  # a card has at most 255 classes
    table = np.full(1 << 24, unknown, dtype=np.uint8)
    for (red, green, blue), id_ in zip(colors, ids, strict=True):
        table[red << 16 | green << 8 | blue] = id_
    return table, unknown


def colors_of(image: Image.Image) -> np.ndarray:
    """uint32 [H, W]: 0xrrggbb."""
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _ids(image: Image.Image, card: Card) -> Image.Image:
    """Raw ids, mode L, of a map in the card's encoding."""
    if card.encoding != "colors":
        return Image.fromarray(np.asarray(image))  # of a palette: the indices
    table, _ = _color_table(tuple(c.color for c in card.classes), tuple(c.id for c in card.classes))
    return Image.fromarray(table[colors_of(image)])


def _unknown_colors(image: Image.Image, card: Card) -> str | None:
    """Colours of no class, the most frequent first: "#ff0000 (12 pixels), ..."."""
    table, unknown = _color_table(tuple(c.color for c in card.classes), tuple(c.id for c in card.classes))
    codes = colors_of(image)
    found, counts = np.unique(codes[table[codes] == unknown], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    told = [f"#{found[i]:06x} ({counts[i]} pixels)" for i in order[:COLORS_TOLD]]
    more = f" and {len(order) - COLORS_TOLD} more colours" if len(order) > COLORS_TOLD else ""
    return ", ".join(told) + more or None


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of an image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


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


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation; None where there is none, or none that a viewer could read either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # Pillow lets any exception through on bad bytes
            return None
    return value if isinstance(value, int) else None


def _photo_facts(path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """Columns of a photo, why it cannot be decoded, its note."""
    image, broken, note = decode(path)
    if image is None:
        return {}, broken, note
    facts = {
        "image_width": image.width,
        "image_height": image.height,
        "image_mode": image.mode,
        "image_bits": bits(path, image),
        "image_orientation": _orientation(image),
    }
    if image.mode not in PHOTO_MODES:
        return {**facts, "image_fault": f"has mode {image.mode}; a photo has 8 bits a channel"}, None, note
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    grey = rgb.convert("L").resize((9 * 8, 8 * 8), Image.Resampling.BOX)  # once from many pixels, twice from few
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    return {
        **facts,
        "image_sha256": pixels_sha256(rgb),
        "image_dhash": np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex(),
        "image_grey": grey.resize((GREY, GREY), Image.Resampling.BOX).tobytes().hex(),
    }, None, note  # fmt: skip


def _label_facts(path: Path, card: Card) -> tuple[dict[str, Any], np.ndarray | None, str | None, str | None]:
    """Columns of a label map, its raw ids, why it cannot be decoded, its note."""
    image, broken, note = decode(path)
    if image is None:
        return {}, None, broken, note
    facts = {
        "label_width": image.width,
        "label_height": image.height,
        "label_mode": image.mode,
        "label_bits": bits(path, image),
        "label_fault": encoding_fault(path, image, card.encoding),
    }
    if facts["label_fault"]:
        return facts, None, None, note
    ids = _ids(image, card)
    pixels = np.asarray(ids)
    return {
        **facts,
        "label_sha256": pixels_sha256(ids),
        "histogram": ids.histogram(),
        "unknown_colors": _unknown_colors(image, card) if card.encoding == "colors" else None,
        "ramps": ramps(pixels),
    }, pixels, None, note  # fmt: skip


def decode_instances(path: Path, ids: np.ndarray, card: Card) -> tuple[np.ndarray | None, str | None]:
    """Codes of an instance map, uint16 [H, W]: id * 1000 + k in things, the id elsewhere; or why they are none.

    ids: raw ids of its label map, uint8 [H, W], which the codes must agree with.
    """
    image, broken, _ = decode(path)
    if image is None:
        return None, broken
    codes = np.asarray(image)
    if codes.shape != ids.shape:
        what = f"is {image.width}x{image.height} of mode {image.mode}, its label map {ids.shape[1]}x{ids.shape[0]}"
        return None, what
    told = codes.astype(np.int32)
    wrong = np.where(told < 1000, told, told // 1000) != ids
    for info in card.classes:
        if info.void:  # who does not care about the class does not care about its instances
            wrong &= ids != info.id
    count = np.count_nonzero(wrong)
    if not count:
        return codes.astype(np.uint16), None
    y, x = np.argwhere(wrong)[0]
    where = f"{told[y, x]} on id {ids[y, x]} at x={x}, y={y}"
    return None, f"{count} pixels are of another class than in the label map: {where}"


def scan_pair(card: Card, raw: Path, pair: Pair) -> dict[str, Any]:
    """One row of the index: a pair's files decoded, measured and hashed."""
    row: dict[str, Any] = {**pair._asdict(), "sample_id": f"{pair.split}/{pair.id}"}
    ids, broken, notes = None, [], []
    for relative, is_photo in ((pair.image, True), (pair.label, False)):
        if relative is None:
            continue
        if is_photo:
            facts, fault, note = _photo_facts(raw / relative)
        else:
            facts, ids, fault, note = _label_facts(raw / relative, card)
        row.update(facts)
        broken += [f"{relative}: {fault}"] if fault else []
        notes += [f"{relative}: {note}"] if note else []
    if pair.instance is not None and ids is not None:
        _, row["instance_fault"] = decode_instances(raw / pair.instance, ids, card)
    row["broken"], row["note"] = "; ".join(broken) or None, "; ".join(notes) or None
    return row

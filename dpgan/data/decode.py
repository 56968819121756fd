"""Raw files decoded to their last byte: photos, label maps as raw ids, instance maps as codes.

Of a dataset's card, decoding sees the `LabelFormat` alone, so that what was found in a file can be kept under its name.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dpgan.errors import SYSTEM_FAILURES, UserError, of_system
from dpgan.files import not_a_file
from dpgan.labels import Color, Encoding, LabelFormat

LOST = 512  # zero bytes in a row: a sector of a disk
LABEL_MODES: dict[Encoding, str] = {"ids": "L", "palette": "P", "colors": "RGB"}
ENCODING_OF = {mode: encoding for encoding, mode in LABEL_MODES.items()}
COLORS_TOLD = 4  # unknown colours that are named, the most frequent first
BITS_PER_SAMPLE = 258  # TIFF tag
HIGHEST_CODE = 65535  # of an instance map


class Header(NamedTuple):
    """What an image file says before it is decoded."""

    mode: str  # Pillow's name
    size: tuple[int, int]  # width, height
    palette: bytes | None = None  # r, g, b, r, ... of a palette file


class Decoded(NamedTuple):
    """A fully decoded file, or why it is not one; `note` holds what the decoder warned about."""

    image: Image.Image | None
    fault: str | None
    note: str | None


@contextmanager
def _any_size() -> Iterator[None]:
    """Lets Pillow open images of any size; to read headers, which takes no memory."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def palette_of(image: Image.Image) -> bytes | None:
    """The palette of an opened file as r, g, b, r, ..., if possible without decoding its pixels."""
    if image.mode != "P":
        return None
    if image.palette is not None and image.palette.rawmode == "RGB":
        return bytes(image.palette.palette)
    return bytes(image.getpalette("RGB") or [])


def read_header(path: Path) -> Header | None:
    """The header of an image file of any size; None when it has none that can be read."""
    if not_a_file(path):
        return None
    with _any_size(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return Header(image.mode, image.size, palette_of(image))
        except Exception:  # Pillow's decoders let any exception through on bad bytes
            return None


def oversize(path: Path) -> str | None:
    """By how much an image exceeds Pillow's limit of pixels; None when it does not."""
    header = read_header(path)
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)  # Pillow warns at the first, and refuses at twice as much
    if header is None or (pixels := header.size[0] * header.size[1]) <= limit:
        return None
    return f"is {header.size[0]}x{header.size[1]}, {pixels / 1e6:.0f} million pixels; {limit / 1e6:.0f} are the limit"


def decode(path: Path) -> Decoded:
    """Decode a whole image file. Only a full `load` finds a truncated JPEG: headers and `verify` do not.

    libjpeg repairs damage inside a JPEG without a word. A block of zero bytes, where a download or a disk lost one, is
    reported as a note: a photo that is one colour all over may hold one, too. UserError when the disk or the memory
    fails, which says nothing about the file.
    """
    if what := not_a_file(path):
        return Decoded(None, f"is {what}", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Image.open(path) as image:
                image.load()
        except UnidentifiedImageError:
            return Decoded(None, "cannot be decoded: not an image file", None)
        except Image.DecompressionBombError as error:
            return Decoded(None, oversize(path) or str(error), None)
        except MemoryError:
            raise UserError(f"{path}: not enough memory to decode it; free some, or resize the image") from None
        except Exception as error:  # Pillow's decoders let any exception through on bad bytes
            return Decoded(None, _undecodable(path, error), None)
    notes = list(dict.fromkeys(str(w.message) for w in said))
    if image.format == "JPEG" and bytes(LOST) in path.read_bytes():
        notes.append(f"{LOST} zero bytes in a row: part of the file may be lost")
    return Decoded(image, None, "; ".join(notes) or None)


def _undecodable(path: Path, error: Exception) -> str:
    """The fault of a file that a decoder gave up on; UserError when the system failed and not the file."""
    if isinstance(error, OSError) and error.errno in SYSTEM_FAILURES:
        raise (of_system(OSError(error.errno, error.strerror, str(path))) or error) from None
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded: {error or type(error).__name__}"


def bits(path: Path, image: Image.Image) -> int:
    """Bits per channel as stored. Pillow's mode hides 16-bit RGB, of which it gives the upper 8, and 2- and 4-bit grey,
    whose values it scales to 0..255.
    """
    with path.open("rb") as file:
        header = file.read(25)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):  # IHDR: width, height, bit depth
        return header[24]
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (1,)))
    return {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}.get(image.mode, 8)


def orientation(image: Image.Image) -> int | None:
    """EXIF orientation; None where there is none, or none that a viewer could read either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # Pillow lets any exception through on bad bytes
            return None
    return value if isinstance(value, int) else None


def encoding_fault(path: Path, image: Image.Image, encoding: Encoding) -> str | None:
    """Why a decoded label map does not hold ids in the card's encoding, and what would help; None when it does."""
    depth, mode = bits(path, image), image.mode
    if image.format in ("JPEG", "MPO"):
        return "is a JPEG, whose compression changes ids; get the maps in a lossless format"
    if (mode in ("1", "L", "RGB") and depth != 8) or mode.startswith(("I", "F")):
        what = "grey" if mode != "RGB" else "RGB"
        return f"is {depth}-bit {what}; save its ids as 8 bits a pixel"
    if mode in ("LA", "PA", "RGBA"):
        return f"has an alpha channel (mode {mode}); drop it: `Image.open(FILE).convert('{mode[:-1]}')`"
    if mode == LABEL_MODES[encoding] or (mode, encoding) == ("P", "colors"):  # the colours of a palette tell as well
        return None
    if mode == "RGB" and len({channel.tobytes() for channel in image.split()}) == 1:
        return "is grey, saved as RGB; save one channel: `Image.open(FILE).getchannel(0)`"
    meant = f"; set `encoding: {ENCODING_OF[mode]}` in the card if all are" if mode in ENCODING_OF else ""
    return f"has mode {mode}, where `encoding: {encoding}` of the card means {LABEL_MODES[encoding]}{meant}"


@lru_cache(maxsize=1)
def _color_table(colors: tuple[tuple[int, Color], ...]) -> tuple[np.ndarray, int]:
    """uint8 [2^24]: raw id by colour 0xrrggbb, and the id that stands for all others: the first that is free."""
    taken = {id_ for id_, _ in colors}
    unknown = next(i for i in range(256) if i not in taken)  # a card has at most 255 classes
    table = np.full(1 << 24, unknown, dtype=np.uint8)
    for id_, (red, green, blue) in colors:
        table[red << 16 | green << 8 | blue] = id_
    return table, unknown


def colors_of(image: Image.Image) -> np.ndarray:
    """uint32 [H, W]: 0xrrggbb of an image of mode RGB or P."""
    image = image.convert("RGB") if image.mode == "P" else image
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def ids_of(image: Image.Image, form: LabelFormat) -> Image.Image:
    """Raw ids, mode L, of a decoded map in the card's encoding."""
    if form.encoding != "colors":
        return Image.fromarray(np.asarray(image))  # of a palette: the indices
    table, _ = _color_table(form.colors)
    return Image.fromarray(table[colors_of(image)])


def unknown_colors(image: Image.Image, form: LabelFormat) -> str | None:
    """Colours of no class, the most frequent first: "#ff0000 (12 pixels), ..."."""
    table, unknown = _color_table(form.colors)
    codes = colors_of(image)
    found, counts = np.unique(codes[table[codes] == unknown], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    told = [f"#{found[i]:06x} ({counts[i]} pixels)" for i in order[:COLORS_TOLD]]
    more = f" and {len(order) - COLORS_TOLD} more colours" if len(order) > COLORS_TOLD else ""
    return ", ".join(told) + more or None


def decode_ids(path: Path, form: LabelFormat) -> Decoded:
    """Decode a label map into its raw ids: an image of mode L, [H, W], as `Card.id_table` reads them.

    A pixel of an unknown colour (encoding `colors`) gets an id that the card does not have.
    """
    image, fault, note = decode(path)
    if image is not None and (fault := encoding_fault(path, image, form.encoding)) is None:
        image = ids_of(image, form)
    return Decoded(None if fault else image, fault, note)


def decode_codes(path: Path) -> Decoded:
    """Decode an instance map into its codes, id * 1000 + k in things and the id elsewhere: mode I;16, [H, W]."""
    image, fault, note = decode(path)
    if image is None:
        return Decoded(None, fault, note)
    codes = np.asarray(image)
    if codes.ndim != 2 or codes.dtype.kind not in "ui":
        return Decoded(None, f"has mode {image.mode}; an instance map has one channel of whole numbers", note)
    if codes.min() < 0 or codes.max() > HIGHEST_CODE:
        return Decoded(None, f"holds values from {codes.min()} to {codes.max()}; 0 to {HIGHEST_CODE} are codes", note)
    return Decoded(Image.fromarray(codes.astype(np.uint16)), None, note)


def codes_fault(codes: np.ndarray, ids: np.ndarray, form: LabelFormat) -> str | None:
    """Why an instance map and its label map cannot both be right.

    codes: uint16 [H, W] of `decode_codes`; ids: raw ids uint8 [H, W]. Void classes may have any code.
    """
    if codes.shape != ids.shape:
        (height, width), (high, wide) = codes.shape, ids.shape
        return f"is {width}x{height}, its label map {wide}x{high}"
    wrong = np.where(codes < 1000, codes, codes // 1000) != ids
    if not wrong.any():
        return None
    wrong &= ~np.isin(ids, form.void)  # who does not care about the class does not care about its instances
    count = np.count_nonzero(wrong)
    if not count:
        return None
    y, x = np.argwhere(wrong)[0]
    where = f"{codes[y, x]} on id {ids[y, x]} at x={x}, y={y}"
    return f"{count} pixels are of another class than in the label map: {where}"


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of an image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()

"""What a sample of label maps holds: how classes are written, which there are, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dpgan.data.decode import ENCODING_OF, Header, colors_of, decode, read_header
from dpgan.data.propose.words import number, some
from dpgan.data.scan import MAX_RAMPS, ramps
from dpgan.errors import UserError
from dpgan.labels import Encoding

SAMPLE = 300  # maps that are decoded; headers of all are read
RARE, ACCIDENT = 1e-4, 5e-3  # a colour is no class below the first share of all pixels, unless a map has the second
PHOTO_COLORS = 5000  # no palette has as many

Color = tuple[int, int, int]
Key = int | Color  # a raw id, or a colour where the encoding is colors


@dataclass
class Maps:
    """The sample, counted."""

    encoding: Encoding
    decoded: int = 0
    pixels: Counter[Key] = field(default_factory=Counter)
    maps: Counter[Key] = field(default_factory=Counter)  # that hold it
    most: dict[Key, float] = field(default_factory=dict)  # its largest share of a map
    palette: dict[int, Color] = field(default_factory=dict)  # of palette files
    suspicious: list[str] = field(default_factory=list)


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly spaced."""
    steps = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[i] for i in np.unique(steps)]


def flatness(path: Path) -> float:
    """Share of pixels that equal their right neighbour; 0 where the file cannot be read."""
    image = decode(path).image
    if image is None or image.width < 2:
        return 0.0
    one_channel = len(image.getbands()) == 1
    pixels = np.asarray(image) if one_channel else colors_of(image.convert("RGB"))
    return float((pixels[:, 1:] == pixels[:, :-1]).mean())


def read_headers(folder: Path, paths: Sequence[str]) -> dict[str, Header]:
    """By path; a file without a readable header is left out, for `validate` to tell."""
    return {path: header for path in paths if (header := read_header(folder / path))}


_CONVERT = {
    "1": "1-bit, two values: save them with 8 bits (Pillow: image.convert('L') gives ids 0 and 255)",
    "RGBA": "RGB with an alpha channel: save them without it (Pillow: image.convert('RGB'))",
    "LA": "grey with an alpha channel: save them without it (Pillow: image.convert('L'))",
    "PA": "palette with an alpha channel: save them without it (Pillow: image.convert('P'))",
    "16": "16-bit: save ids with 8 bits (numpy: array.astype('uint8')); values above 255 are instances, not classes",
}


def _encoding(headers: dict[str, Header]) -> tuple[str, list[str]]:
    """The mode that most maps have, and what is odd; UserError where no card could describe them."""
    for path in headers:
        if path.lower().endswith((".jpg", ".jpeg")):
            raise UserError(
                f"{path}: the label maps are JPEG, which changes ids at every edge and cannot be undone; "
                "export them again as PNG from where they were drawn"
            )
    modes = Counter(header.mode for header in headers.values())
    mode, count = modes.most_common(1)[0]
    if mode not in ENCODING_OF:
        example = next(path for path, header in headers.items() if header.mode == mode)
        what = _CONVERT.get("16" if mode.startswith("I") else mode, f"of mode {mode}: save them as 8-bit grey")
        raise UserError(f"{example}: the label maps are {what}")
    odd = [f"{path} ({header.mode})" for path, header in headers.items() if header.mode != mode]
    if not odd:
        return mode, []
    return mode, [
        f"Label maps of several kinds: {count} of mode {mode}, {len(odd)} of another: {some(odd)}. "
        "Save all of them in the same way."
    ]


def _drop_accidents(maps: Maps) -> None:
    """Colours with hardly a pixel anywhere are no classes; say so."""
    total = maps.pixels.total()
    rare = [key for key, n in maps.pixels.items() if n < RARE * total and maps.most[key] < ACCIDENT]
    if not rare:
        return
    share = sum(maps.pixels[key] for key in rare) / total
    maps.suspicious.append(
        f"{number(len(rare), 'colour')} with hardly a pixel ({share:.2%} in all): {some(rare)}. These are traces of "
        "smooth resizing, smoothed outlines or JPEG. They are not in the card, so `validate` names the maps that hold "
        "them; export these again without smoothing."
    )
    for key in rare:
        del maps.pixels[key], maps.maps[key]


def _count(maps: Maps, image: Image.Image, path: Path) -> None:
    """Add one decoded map."""
    if maps.encoding == "colors":
        values, counts = np.unique(colors_of(image), return_counts=True)
        if len(values) > PHOTO_COLORS:
            raise UserError(
                f"{path}: {len(values)} colours: a photo, or a label map that was smoothed or saved as JPEG on the "
                "way; export the label maps again as PNG, without smoothing"
            )
        keys: list[Key] = [(v >> 16, (v >> 8) & 255, v & 255) for v in values.tolist()]
    else:
        values, counts = np.unique(np.asarray(image), return_counts=True)
        keys = values.tolist()
    for key, count in zip(keys, counts.tolist(), strict=True):
        maps.pixels[key] += count
        maps.maps[key] += 1
        maps.most[key] = max(maps.most.get(key, 0.0), count / counts.sum())
    maps.decoded += 1


def study(folder: Path, paths: Sequence[str]) -> Maps:
    """Count what a sample of the label maps holds. UserError where no card could describe them."""
    headers = read_headers(folder, paths)
    if not headers:
        raise UserError(f"{folder / paths[0]}: {decode(folder / paths[0]).fault}; nor can any other label map be read")
    mode, odd = _encoding(headers)
    unread = [path for path in paths if path not in headers]
    if unread:
        odd.append(f"Not an image: {some(unread)}. Restore the file from its source, or delete the pair.")
    maps, blurred = Maps(ENCODING_OF[mode], suspicious=odd), []
    for path in spread([path for path, header in headers.items() if header.mode == mode], SAMPLE):
        image = decode(folder / path).image
        if image is None:
            continue  # `validate` tells
        _count(maps, image, folder / path)
        if image.mode == "P" and not maps.palette:
            colors = np.array(image.getpalette("RGB"), dtype=int).reshape(-1, 3).tolist()
            maps.palette = {i: (r, g, b) for i, (r, g, b) in enumerate(colors)}
        if maps.encoding != "colors" and ramps(np.asarray(image)) > MAX_RAMPS:
            blurred.append(path)
    if not maps.decoded:
        raise UserError(f"{folder / paths[0]}: cannot be decoded, nor can any other label map; copy the folder again")
    if maps.encoding == "colors":
        _drop_accidents(maps)
    if len(maps.pixels) > 255:
        raise UserError(
            f"{folder}: the label maps hold {len(maps.pixels)} values, and a card can list 255; are these label maps, "
            "and were they saved without smoothing?"
        )
    if blurred:
        maps.suspicious.append(
            f"Ramps between ids in {len(blurred)} of {number(maps.decoded, 'label map')}: {some(blurred)}. They were "
            "resized smoothly, so ids stand at edges that nobody drew. Resize label maps by nearest neighbour."
        )
    return maps

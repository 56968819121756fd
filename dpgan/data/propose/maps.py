"""What a sample of label maps holds: how classes are written, which there are, and what looks wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dpgan.data.decode import ENCODING_OF, Header, colors_of, decode, palette_of, read_header
from dpgan.data.propose.formats import Color
from dpgan.data.propose.words import number, some
from dpgan.data.scan import MAX_RAMPS, ramps
from dpgan.errors import UserError
from dpgan.labels import Encoding

SAMPLE = 300  # maps that are decoded; headers of all are read
RARE, ACCIDENT = 1e-4, 5e-3  # a colour is no class below the first share of all pixels, unless a map has the second
PHOTO_COLORS = 5000  # no palette has as many

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
    found: list[str] = field(default_factory=list)
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


def _add(maps: Maps, keys: Sequence[Key], counts: Sequence[int]) -> None:
    """Add the pixels per key of one map."""
    total, summed = sum(counts), Counter[Key]()
    for key, count in zip(keys, counts, strict=True):
        summed[key] += count
    for key, count in summed.items():
        maps.pixels[key] += count
        maps.maps[key] += 1
        maps.most[key] = max(maps.most.get(key, 0.0), count / total)
    maps.decoded += 1


def _count(maps: Maps, image: Image.Image, path: Path) -> list[int]:
    """Add one decoded map; its values, if they are ids."""
    if maps.encoding != "colors":
        values, counts = np.unique(np.asarray(image), return_counts=True)
        _add(maps, values.tolist(), counts.tolist())
        return list(values.tolist())
    values, counts = np.unique(colors_of(image), return_counts=True)
    if len(values) > PHOTO_COLORS:
        raise UserError(
            f"{path}: {len(values)} colours: a photo, or a label map that was smoothed or saved as JPEG on the "
            "way; export the label maps again as PNG, without smoothing"
        )
    _add(maps, [(v >> 16, (v >> 8) & 255, v & 255) for v in values.tolist()], counts.tolist())
    return []


class _Palettes:
    """The colours at which the indices of palette files stand, file by file."""

    def __init__(self) -> None:
        self.colors: dict[int, dict[Color, str]] = defaultdict(dict)  # by index: a file per colour
        self.indices: dict[Color, set[int]] = defaultdict(set)
        self.as_colors = Maps("colors")

    def add(self, path: str, image: Image.Image, values: list[int]) -> None:
        """The used entries of a decoded file."""
        entries = np.frombuffer(palette_of(image) or b"", np.uint8)
        entries = np.concatenate([entries, np.zeros(768 - len(entries), np.uint8)]).reshape(256, 3)
        own: dict[int, Color] = {i: (int(r), int(g), int(b)) for i, (r, g, b) in enumerate(entries)}
        for value in values:
            self.colors[value].setdefault(own[value], path)
            self.indices[own[value]].add(value)
        histogram = image.histogram()
        _add(self.as_colors, [own[value] for value in values], [histogram[value] for value in values])

    def settle(self, folder: Path, maps: Maps, named: Collection[Color]) -> Maps:
        """The maps as they must be read: by index where all palettes agree, by colour if the colour tells the class."""
        differs = next((i for i, colors in sorted(self.colors.items()) if len(colors) > 1), None)
        if differs is None:
            return maps
        (one, first), (other, second) = list(self.colors[differs].items())[:2]
        what = f"index {differs} is {one} in {first} and {other} in {second}"
        colors = self.as_colors
        frequent = [color for color in self.indices if colors.maps[color] > 1]
        wander = [color for color in frequent if len(self.indices[color]) > 1]
        shared = len(frequent) >= 0.9 * len(self.indices) and 2 * len(wander) >= len(frequent)
        if not (self.indices.keys() <= set(named) or shared):
            raise UserError(
                f"{folder}: the label maps have different palettes: {what}. Which tells the class cannot be seen. If "
                "the index does, save all of them with one palette; if the colour does, save them as RGB (Pillow: "
                "image.convert('RGB')); then run the command again"
            )
        colors.suspicious = maps.suspicious
        colors.found = [f"Palettes differ from file to file ({what}): the colour tells the class, not the index."]
        return colors


def _refuse_segments(folder: Path, maps: Maps, json: str | None) -> None:
    """UserError if colours number segments, not classes: as good as every colour stands in one map only."""
    large = [key for key in maps.pixels if maps.most[key] >= ACCIDENT]
    lone = [key for key in large if maps.maps[key] == 1]
    if maps.decoded < 2 or 10 * len(lone) < 8 * len(large) or len(lone) < (6 if json else 3 * maps.decoded):
        return
    where = f"{json} next to them describes segments" if json else "as in COCO's panoptic PNGs or instance maps"
    raise UserError(
        f"{folder}: {len(lone)} of {len(large)} colours stand in one label map only: a colour is a segment, "
        f"not a class ({where}; there, id = R + 256 G + 65536 B, and the JSON's segments_info gives its category_id). "
        "Export semantic maps: 8-bit PNGs that hold the category_id of each pixel's segment (panopticapi: "
        "converters/panoptic2semantic_segmentation.py), and put the list of categories next to them as `id: name` lines"
    )


def _sample(headers: dict[str, Header], mode: str) -> list[str]:
    """The maps that are decoded: evenly spaced, and one of every palette."""
    paths = [path for path, header in headers.items() if header.mode == mode]
    by_palette = {headers[path].palette: path for path in reversed(paths)}
    return list(dict.fromkeys([*spread(paths, SAMPLE), *spread(sorted(by_palette.values()), SAMPLE)]))


def study(folder: Path, paths: Sequence[str], named: Collection[Color] = (), segments: str | None = None) -> Maps:
    """Count what a sample of the label maps holds. UserError if no card could describe them.

    `named`: colours that a list of classes names. `segments`: a JSON file that describes segments.
    """
    headers = read_headers(folder, paths)
    if not headers:
        raise UserError(f"{folder / paths[0]}: {decode(folder / paths[0]).fault}; nor can any other label map be read")
    mode, odd = _encoding(headers)
    unread = [path for path in paths if path not in headers]
    if unread:
        odd.append(f"Not an image: {some(unread)}. Restore the file from its source, or delete the pair.")
    maps, palettes, blurred = Maps(ENCODING_OF[mode], suspicious=odd), _Palettes(), []
    for path in _sample(headers, mode):
        image = decode(folder / path).image
        if image is None:
            continue  # `validate` tells
        values = _count(maps, image, folder / path)
        if image.mode == "P":
            palettes.add(path, image, values)
            colors = np.array(image.getpalette("RGB"), dtype=int).reshape(-1, 3).tolist()
            maps.palette = {i: (r, g, b) for i, (r, g, b) in enumerate(colors)} | maps.palette
        if maps.encoding != "colors" and ramps(np.asarray(image)) > MAX_RAMPS:
            blurred.append(path)
    if not maps.decoded:
        raise UserError(f"{folder / paths[0]}: cannot be decoded, nor can any other label map; copy the folder again")
    maps = palettes.settle(folder, maps, named)
    if maps.encoding == "colors":
        _refuse_segments(folder, maps, segments)
        _drop_accidents(maps)
    if len(maps.pixels) > 255:
        raise UserError(
            f"{folder}: the label maps hold {len(maps.pixels)} values, and a card can list 255; are these label maps, "
            "and were they saved without smoothing?"
        )
    if blurred and maps.encoding != "colors":
        maps.suspicious.append(
            f"Ramps between ids in {len(blurred)} of {number(maps.decoded, 'label map')}: {some(blurred)}. They were "
            "resized smoothly, so ids stand at edges that nobody drew. Resize label maps by nearest neighbour."
        )
    return maps

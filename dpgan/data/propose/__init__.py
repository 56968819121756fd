"""A card for a folder that nobody described: what its files, their names and a sample of its label maps tell.

Pure but for reading the folder. Whatever is a guess is told as one, in `Proposal.found` or `Proposal.suspicious`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dpgan.checks import Pairs
from dpgan.data.decode import decode
from dpgan.data.layout import files_of, need_plain_names, walk
from dpgan.data.propose.arrange import (
    IMAGE_FILES,
    Arrangement,
    Series,
    arrange,
    paired_by_number,
    series_of,
    take_apart,
)
from dpgan.data.propose.classes import propose_classes
from dpgan.data.propose.maps import Maps, flatness, read_headers, spread, study
from dpgan.data.propose.names import find_names, panoptic_json
from dpgan.data.propose.splits import few, split_pairs
from dpgan.data.propose.words import number, some
from dpgan.errors import UserError
from dpgan.labels import Card, Layout

PRESET = "camvid"  # the small one: minutes on two CPU cores
LICENCE = "unknown; say here what the photos may be used for"
SHAPE = 0.03  # an aspect ratio that is off by less looks the same
HIGHEST = 256  # pixels of a proposed size
TINY = 8  # pixels: smaller images show nothing


class Proposal(NamedTuple):
    """A card, and what its user should know."""

    card: Card
    found: list[str]  # sentences
    suspicious: list[str]  # sentences; each says what to do
    lists: dict[str, list[str]]  # ids by file that the raw folder lacks: the split that is proposed
    pairs: Pairs


def propose_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Height and width in multiples of 32 with the photos' shape: the largest of them up to 256 high.

    `sizes`: (width, height) of the photos; the middle one of their aspect ratios counts.
    """
    by_shape = sorted(sizes, key=lambda size: size[0] / size[1])
    width, height = by_shape[len(by_shape) // 2]
    options = []
    for high in range(32, max(min(height, HIGHEST), 32) + 1, 32):
        wide = max(32, round(high * width / height / 32) * 32)
        options.append((abs(wide / high * height / width - 1), high, wide))
    fitting = [option for option in options if option[0] <= SHAPE]
    _, high, wide = max(fitting, key=lambda option: option[1]) if fitting else min(options)
    return high, wide


def _no_pairs(folder: Path, files: list[str]) -> UserError:
    """Nothing to pair: say what lies there."""
    images = [path for path in files if Path(path).suffix.lower() in IMAGE_FILES]
    if not images:
        kinds = Counter(Path(path).suffix or path for path in files)
        what = some(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
        return UserError(f"{folder}: no image in it; found {what}. Unzip archives first; give the folder of the files")
    series = sorted(series_of(images), key=lambda s: -len(s.paths()))
    lines = [f"    {len(s.paths())} x {s.pattern}" for s in series[:6]]
    sample = spread(images, 100)
    headers = read_headers(folder, sample)
    if unread := [path for path in sample if path not in headers]:
        lines.append(f"    {len(unread)} cannot be read: {unread[0]} {decode(folder / unread[0]).fault}")
    elif found := paired_by_number(series):
        _, _, pairs = found
        shown = some((f"{a} with {b}" for a, b in pairs), 2)
        return UserError(
            f"{folder}: photos and label maps do not share their names, but their numbers match one to one "
            f"({number(len(pairs), 'pair')}: {shown}). If these belong together, rename the one like the other (zeros "
            "in front of the number included), and run the command again"
        )
    told = "\n".join([f"{folder}: no photo and label map belong together; what lies there:", *lines])
    return UserError(
        f"{told}\n  A photo and its label map must share their name, but for a word that tells them apart: "
        "images/1.jpg and labels/1.png, or 1.jpg and 1_mask.png"
    )


def _sizes(folder: Path, pairs: list[tuple[str, str]]) -> tuple[tuple[int, int], list[str], list[str]]:
    """A size for the card; what is found; what is suspicious."""
    photos, maps = (read_headers(folder, paths) for paths in zip(*pairs, strict=True))
    if not photos:
        photo = folder / pairs[0][0]
        raise UserError(f"{photo}: {decode(photo).fault}; nor can any other photo be read")
    sizes = Counter(header.size for header in photos.values())
    (width, height), most = sizes.most_common(1)[0]
    size = propose_size(header.size for header in photos.values())
    unread = [photo for photo, _ in pairs if photo not in photos]
    found, suspicious = [f"Photos are {width}x{height}; trained at {size[1]}x{size[0]} (width x height)."], []
    if unread:
        suspicious.append(f"Not an image: {some(unread)}. Restore the file from its source, or delete the pair.")
    if len(sizes) > 1:
        shapes = sorted(w / h for w, h in sizes)
        found[0] = (
            f"Photos have {len(sizes)} sizes, {most} of {len(photos)} are {width}x{height}; trained at "
            f"{size[1]}x{size[0]} (width x height)."
        )
        if shapes[-1] > 1.2 * shapes[0]:
            suspicious.append(
                f"Photos have shapes from {shapes[0]:.2f} to {shapes[-1]:.2f} (width / height), and all are squashed "
                "into one. Crop them alike, or raise `max_stretch` in the card if that is meant."
            )
    odd = [
        "{} {}x{}, {} {}x{}".format(photo, *photos[photo].size, labels, *maps[labels].size)
        for photo, labels in pairs
        if photo in photos and labels in maps and photos[photo].size != maps[labels].size
    ]
    if odd:
        suspicious.append(
            f"Not of their photo's size: {number(len(odd), 'label map')}: {some(odd, 2)}. Check the pairing; resize "
            "label maps by nearest neighbour only."
        )
    return size, found, suspicious


def _refuse_tiny(folder: Path, files: list[str]) -> None:
    """UserError if the images are too small for anything."""
    images = [path for path in files if Path(path).suffix.lower() in IMAGE_FILES]
    headers = read_headers(folder, spread(images, 100))
    if headers and max(max(header.size) for header in headers.values()) < TINY:
        width, height = max(header.size for header in headers.values())
        raise UserError(f"{folder}: the images are {width}x{height} at most, too small to be photos; export them anew")


def _arrangement(folder: Path, files: list[str]) -> Arrangement:
    def flat(series: Series) -> float:
        sample = spread(series.paths(), 3)
        return sum(flatness(folder / path) for path in sample) / len(sample)

    need_plain_names(folder, files)
    _refuse_tiny(folder, files)
    try:
        arrangement = arrange(files, flat)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if arrangement is None:
        raise _no_pairs(folder, files)
    return arrangement


def _other_endings(series: Series, unused: list[str], kind: str) -> list[str]:
    """Files that are like those of a series but for their ending, as sentences."""
    body, _, ending = series.pattern.rpartition(".")
    odd = [path for path in unused if take_apart(path).pattern.rpartition(".")[0] == body]
    if not odd:
        return []
    return [
        f"Not .{ending} as most are: {number(len(odd), kind)}, {some(odd)}. Save them alike: a card knows one ending."
    ]


def _told_maps(maps: Maps, count: int) -> str:
    written = {
        "ids": "8-bit grey: the value is the id",
        "palette": "palette images: the index is the id",
        "colors": "RGB: a class is a colour",
    }[maps.encoding]
    looked = "all" if maps.decoded == count else f"{maps.decoded} of {count}"
    return f"Label maps are {written}. Looked at {looked}: {number(len(maps.pixels), 'value')}."


def propose(folder: Path, name: str) -> Proposal:
    """What `folder` holds, as a card called `name`. UserError where it holds no pairs, or maps no card can describe."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the photos and label maps")
    files = list(walk(folder))
    arrangement = _arrangement(folder, files)
    image, label, instance = arrangement.image, arrangement.label, arrangement.instance
    splits = split_pairs(folder, files, image, label)
    lists = find_names(folder, files, [*image.paths(), *label.paths()])
    colors = [row.color for reading in lists.readings for row in reading.rows if row.color]
    maps = study(folder, label.paths(), colors, panoptic_json(folder, files))
    size, told_sizes, odd_sizes = _sizes(folder, splits.pairs)
    classes = propose_classes(folder, lists, maps)
    card = Card(
        name=name,
        title=name,
        licence=LICENCE,
        layout=Layout(
            image=splits.literal(image.pattern),
            label=splits.literal(label.pattern),
            instance=splits.literal(instance.pattern) if instance else None,
            ids=splits.ids,
        ),
        splits=splits.folders,
        size=size,
        preset=PRESET,
        encoding=maps.encoding,
        classes=classes.rows,
    )
    found = [
        f"Photos {card.layout.image}, label maps {card.layout.label}"
        + (f", instance maps {card.layout.instance}." if card.layout.instance else "."),
        *splits.found,
        _told_maps(maps, len(label.paths())),
        *maps.found,
        *classes.found,
        *told_sizes,
    ]
    if arrangement.unused:
        found.append(f"Not used: {some(arrangement.unused)}.")
    endings = [
        *_other_endings(image, arrangement.unused, "photo"),
        *_other_endings(label, arrangement.unused, "label map"),
    ]
    if arrangement.less_flat:
        endings.append(
            f"The label maps are less flat than the photos; which is which was taken from their names ({label.pattern} "
            "are the label maps). Look at one of each."
        )
    suspicious = [*endings, *splits.suspicious, *few(*splits.counts), *maps.suspicious, *classes.suspicious, *odd_sizes]
    return Proposal(card, found, suspicious, splits.lists, Pairs(*splits.counts, instances=instance is not None))


def _is_plain(card: Card) -> bool:
    """Whether a layout could be anyone's: {split} and {id} alone between slashes, and splits called as most are."""
    between = re.fullmatch(r"(?:\w+/)?\{split\}/(?:\w+/)?\{id\}\.\w+", card.layout.label)
    return between is not None and not {"train", "val", "test"}.isdisjoint(card.splits.values())


def fitting(folder: Path, cards: Iterable[Card]) -> list[Card]:
    """The cards that describe a folder: their layout fits, and a sample of its label maps holds no other ids.

    A layout that could be anyone's (images/train, labels/train) counts only where all classes are seen as well.
    """
    return [card for card in cards if _fits(folder, card)]


def _fits(folder: Path, card: Card) -> bool:
    plain = _is_plain(card)
    seen: set[int] = set()
    for split in card.splits.values():
        files = files_of(folder, card.layout, split)
        pairs = sorted(files.image.keys() & files.label.keys())
        if not pairs:
            return False
        try:
            maps = study(folder, spread([files.label[id_] for id_ in pairs], 100 if plain else 10))
        except UserError:
            return False
        if maps.encoding == "colors":
            return False
        seen |= {key for key in maps.pixels if isinstance(key, int)}
    return all(card.id_table[id_] >= 0 for id_ in seen) and (
        not plain or seen >= {card.classes[i].id for i in card.evaluated}
    )

"""Which files of an unknown folder are photos, which are their label maps, and where the split stands.

A file is taken apart by the words in its path: a word for a split (`train`, `val2017`), and words for its kind
(`images`, `_gtFine_labelIds`). What is left is the id of the pair. Files that agree in all but split and id are a
series; the two series that share the most ids, of which one is flat as only drawings are, make the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from dpgan.errors import UserError

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
PHOTO = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "rgb", "jpegimages", "leftimg8bit",
         "input", "inputs", "frames"}  # fmt: skip
LABEL = {"label", "labels", "labelmap", "labelmaps", "labelids", "mask", "masks", "annotation", "annotations", "annot",
         "ann", "gt", "gtfine", "groundtruth", "seg", "segm", "segmentation", "segmentations", "segmentationclass",
         "segmentationclasspng",
         "semantic", "target", "targets", "l"}  # fmt: skip
INSTANCE = {"instance", "instances", "instanceids", "inst", "segmentationobject"}
OTHER = {"color", "colors", "colour", "trainids", "labeltrainids", "depth", "disparity", "overlay", "overlays", "vis",
         "preview", "edges", "human", "segmentationclassvisualization", "visualization"}  # fmt: skip
KINDS = PHOTO | LABEL | INSTANCE | OTHER

_SPLIT = re.compile(
    r"(?<![a-z])(?P<split>(?:trainval|train|val|test)(?:ing|idation|id)?(?:20\d\d)?)"
    r"(?=$|[^a-z0-9]|annot|label|mask|image|img)",
    re.I,
)
_TAIL = re.compile(r"[_\-. ]([a-z0-9]+)$", re.I)
_HEAD = re.compile(r"([a-z]+)(?:[_\-. ]+|(?=\d))", re.I)


class Found(NamedTuple):
    """A file, taken apart."""

    pattern: str  # with {id}, and {split} where the path names one
    split: str  # as the path spells it; empty where it names none
    id: str


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def split_word(text: str) -> str | None:
    """The word for a split in a name, as it is spelled there; None where there is none."""
    match = _SPLIT.search(text)
    return match["split"] if match else None


def take_apart(path: str, folder_is_kind: bool = False) -> Found:
    """The pattern, split and id of a path. `folder_is_kind`: a first folder without a known word is no part of ids."""
    parts = PurePosixPath(path)
    folders, stem, split, last = list(parts.parts[:-1]), parts.stem, "", 0 if not folder_is_kind else 1
    for i, name in enumerate(folders):
        match = _SPLIT.search(name)
        if match and not split:
            split = match["split"]
            folders[i] = name[: match.start()] + "{split}" + name[match.end() :]
        if match or _words(name) & KINDS:
            last = i + 1
    kinds, inner = folders[:last], folders[last:]
    tail = ""
    while (match := _TAIL.search(stem)) and match[1].lower() in KINDS and stem[: match.start()]:
        stem, tail = stem[: match.start()], match[0] + tail
    head = ""
    if not inner:  # a pattern has one {id}, which cannot leave out a piece in its middle
        if not split and (match := _SPLIT.match(stem)) and stem[match.end() : match.end() + 1] in ("_", "-", "."):
            split, head, stem = match["split"], "{split}" + stem[match.end()], stem[match.end() + 1 :]
        if (match := _HEAD.match(stem)) and match[1].lower() in KINDS and stem[match.end() :]:
            head, stem = head + match[0], stem[match.end() :]
    pattern = "/".join([*kinds, f"{head}{{id}}{tail}{parts.suffix}"])
    return Found(pattern, split, "/".join([*inner, stem]))


@dataclass
class Series:
    """Files that differ in split and id only: `files[split][id]` is a path."""

    pattern: str
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def paths(self) -> list[str]:
        return [path for by_id in self.files.values() for path in by_id.values()]

    def says(self, words: set[str]) -> bool:
        return bool(_words(self.pattern) & words)

    def ids(self, split: str) -> set[str]:
        """Ids of a split; all of them where the pattern does not tell splits."""
        return set(self.files.get(split, self.files.get("", {})))

    def path(self, split: str, id_: str) -> str:
        """The file of an id of `ids(split)`."""
        return self.files.get(split, self.files.get("", {}))[id_]


class Arrangement(NamedTuple):
    """The photos and label maps of a folder, and what else lies there."""

    image: Series
    label: Series
    instance: Series | None
    unused: list[str]  # image files that belong to none of these
    less_flat: bool  # the label maps are less flat than the photos: their names alone tell them apart


def series_of(paths: Iterable[str], folder_is_kind: bool = False) -> list[Series]:
    """The image files of a folder, sorted into series."""
    found: dict[str, Series] = {}
    for path in paths:
        if PurePosixPath(path).suffix.lower() in IMAGE_FILES:
            pattern, split, id_ = take_apart(path, folder_is_kind)
            found.setdefault(pattern, Series(pattern)).files.setdefault(split, {})[id_] = path
    return list(found.values())


def shared(a: Series, b: Series) -> int:
    """How many ids two series share, split by split."""
    splits = set(a.files) | set(b.files)
    if "" in splits:
        every_a, every_b = (set().union(*s.files.values()) for s in (a, b))
        return len(every_a & every_b)
    return sum(len(a.ids(split) & b.ids(split)) for split in splits)


def _called(image: Series, label: Series) -> int:
    """2 if both are called photos and label maps, 1 if one is, -1 and -2 if they are called the other way round."""
    photo = image.says(PHOTO) - image.says(LABEL)
    maps = label.says(LABEL) - label.says(PHOTO)
    return photo + maps


def _likeliest(series: list[Series], flat: dict[str, float]) -> tuple[Series, Series] | None:
    """Photos and label maps: the two series that share the most ids, words in their paths weighed in.

    Which of the two are the label maps: two clear words decide; one word must agree with the flatness; without a word
    the flatness decides.
    """

    def score(image: Series, label: Series) -> float:
        called = _called(image, label)
        flatter = flat[label.pattern] > flat[image.pattern]
        if called < 0 or (called == 0 and not flatter):
            return 0.0
        named = 1.0 + image.says(PHOTO) + label.says(LABEL)
        aside = image.says(OTHER | INSTANCE) or label.says(OTHER | INSTANCE)
        return shared(image, label) * named * (0.1 if aside else 1.0)

    scores = {(a.pattern, b.pattern): (score(a, b), a, b) for a in series for b in series if a is not b}
    best = max(sorted(scores), key=lambda key: scores[key][0], default=None)
    return scores[best][1:] if best is not None and scores[best][0] > 0 else None


def arrange(paths: list[str], flatness: Callable[[Series], float]) -> Arrangement | None:
    """The likeliest photos and label maps; None where no two series share an id.

    `flatness` of a series: the share of pixels (0..1) that equal their neighbour. Label maps are flat, photos are not.
    """
    for folder_is_kind in (False, True):
        series = series_of(paths, folder_is_kind)
        flat = {s.pattern: flatness(s) for s in series}
        pair = _likeliest(series, flat)
        if pair is None:
            continue
        image, label = pair
        if _called(image, label) == 1 and flat[label.pattern] < flat[image.pattern]:
            raise UserError(
                f"which are the label maps is not sure: by their names {label.pattern}, but {image.pattern} is flatter "
                f"({flat[image.pattern]:.0%} equal neighbours, not {flat[label.pattern]:.0%}). Call the folders images "
                "and labels, and run the command again"
            )
        others = [s for s in series if s not in pair and s.says(INSTANCE) and shared(image, s)]
        instance = max(others, key=lambda s: shared(image, s), default=None)
        used = {path for s in (image, label, instance) if s is not None for path in s.paths()}
        unused = [path for s in series for path in s.paths() if path not in used]
        return Arrangement(image, label, instance, unused, flat[label.pattern] < flat[image.pattern])
    return None


def paired_by_number(series: list[Series]) -> tuple[Series, Series, list[tuple[str, str]]] | None:
    """Two series whose ids differ, and their numbers match one to one (1.jpg, 0001.png); None if there are none."""

    def by_number(one: Series) -> dict[tuple[str, int], str] | None:
        found: dict[tuple[str, int], str] = {}
        for split, files in one.files.items():
            for id_, path in files.items():
                digits = re.findall(r"\d+", id_)
                if not digits or (split, int(digits[-1])) in found:
                    return None
                found[split, int(digits[-1])] = path
        return found

    numbered = [(one, found) for one in series if (found := by_number(one))]
    for i, (one, a) in enumerate(numbered):
        for other, b in numbered[i + 1 :]:
            if len(a) >= 2 and a.keys() == b.keys():
                return one, other, [(a[key], b[key]) for key in sorted(a)]
    return None

"""Which files of a raw folder belong together: the pairs of a card's layout."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpgan.errors import UserError
from dpgan.labels import Card, Layout, Role

SHOWN = 5  # files in an error message


class Pair(NamedTuple):
    """What the folder listing knows of a pair; paths are relative to the raw folder, None where missing."""

    split: Role
    id: str
    image: str | None
    label: str | None
    instance: str | None
    missing: str | None  # the fault, where a partner is missing


class Files(NamedTuple):
    """The files of a split, path by id, as a layout sorts them."""

    image: dict[str, str]
    label: dict[str, str]
    instance: dict[str, str]


def walk(folder: Path) -> Iterator[str]:
    """Every file below `folder` as a relative POSIX path, sorted; what archivers and desktops hide is left out."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        below = Path(where).relative_to(folder)
        yield from ((below / name).as_posix() for name in sorted(names) if not name.startswith("."))


def _listing(raw: Path, pattern: str) -> dict[str, str]:
    """Files below `raw` that fit a pattern without {split}: path by id."""
    before, after = pattern.split("{id}", maxsplit=1)
    fits = re.compile(re.escape(before) + "(.+)" + re.escape(after))
    top = before.rpartition("/")[0]
    paths = (f"{top}/{path}" if top else path for path in walk(raw / top))
    return {match[1]: path for path in paths if (match := fits.fullmatch(path))}


def files_of(raw: Path, layout: Layout, split: str) -> Files:
    """What lies in the raw folder for one split. A file that fits several patterns belongs to the longest."""
    patterns = {k: p.replace("{split}", split) for k, p in layout.model_dump(exclude={"ids"}).items() if p is not None}
    found: dict[str, dict[str, str]] = {}
    taken: set[str] = set()
    for kind in sorted(patterns, key=lambda kind: -len(patterns[kind])):
        found[kind] = {id_: path for id_, path in _listing(raw, patterns[kind]).items() if path not in taken}
        taken |= set(found[kind].values())
    return Files(found["image"], found["label"], found.get("instance", {}))


def _listed_ids(card: Card, raw: Path, split: str) -> list[str] | None:
    """The ids that the split's list file names; None where the layout has none."""
    if card.layout.ids is None:
        return None
    path = raw / card.layout.ids.replace("{split}", split)
    try:
        ids = path.read_text().split("\n")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else "not a text file"
        raise UserError(
            f"{path}: {what}; it must hold the ids of {split}, one a line (layout.ids of the card)"
        ) from None
    return list(dict.fromkeys(stripped for line in ids if (stripped := line.strip())))


def other_edition(card: Card, files: Iterable[str]) -> str | None:
    """What to say where files give away an edition that the card does not describe; None where none does."""
    for pattern, what in card.other_editions.items():
        if any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for path in files):
            return (
                f"there are {pattern} files: this is {what}, another edition than the card of {card.name} describes; "
                f"data/{card.name}/README.md says which one to get"
            )
    return None


def _no_files(card: Card, raw: Path, pattern: str) -> UserError:
    """No file fits a pattern: say what was looked for, what lies there instead, and what that looks like."""
    says = f"{raw}: no file fits {pattern!r}, the layout of data/{card.name}/dataset.yaml"
    files = list(walk(raw))
    if other := other_edition(card, files):
        return UserError(f"{says}; {other}")
    for folder in (*sorted(raw.glob("*/")), *sorted(raw.glob("*/*/")), *raw.resolve().parents[:2]):
        if _listing(folder, pattern):
            return UserError(f"{says}, but files of {folder} do: set `raw` in params.yaml to that folder")
    found = ", ".join(files[:SHOWN]) + (f" and {len(files) - SHOWN} more" if len(files) > SHOWN else "")
    return UserError(
        f"{says}; found {'instead: ' + found if found else 'no file at all'}. "
        f"Lay the files out like that, or mend `raw` in params.yaml or `layout` in the card"
    )


def _pairs(card: Card, raw: Path, role: Role, split: str) -> Iterator[Pair]:
    layout = card.layout
    expected = {k: p.replace("{split}", split) for k, p in layout.model_dump().items() if p is not None}
    files = files_of(raw, layout, split)
    for found, pattern in ((files.image, expected["image"]), (files.label, expected["label"])):
        if not found:
            raise _no_files(card, raw, pattern)
    ids = _listed_ids(card, raw, split)
    for id_ in sorted(files.image.keys() | files.label.keys()) if ids is None else sorted(ids):
        image, label = files.image.get(id_), files.label.get(id_)
        missing = None
        if image is None and label is None:
            missing = f"{expected['ids']}: lists {id_}, of which there is neither photo nor label map"
        elif label is None:
            missing = f"{image}: has no label map (expected {expected['label'].replace('{id}', id_)})"
        elif image is None:
            missing = f"{label}: has no photo (expected {expected['image'].replace('{id}', id_)})"
        yield Pair(role, id_, image, label, files.instance.get(id_), missing)


def find_pairs(card: Card, raw: Path) -> list[Pair]:
    """Every pair of the layout, sorted by split and id; a file whose partner is missing is a pair too."""
    if not raw.is_dir():
        raise UserError(
            f"{raw}: no such folder; set `raw` in params.yaml to the folder that holds the raw pairs of "
            f"{card.name} (data/{card.name}/README.md says how to obtain them)"
        )
    return [pair for role, split in sorted(card.splits.items()) for pair in _pairs(card, raw, role, split)]

"""Which files of a raw folder belong together: the pairs of a card's layout."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dpgan.errors import UserError, of_system, some
from dpgan.files import not_a_file, read_text
from dpgan.labels import Card, Layout, Role

SHOWN = 5  # files in an error message
LISTS = "one per line (layout.ids of the card)"


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
    yield from _walk(folder, "", ())


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """`walk`, below the subfolder `prefix`. above: device and inode of the folders that hold it."""
    here = folder / prefix
    try:
        status = here.stat()
        with os.scandir(here) as listed:
            entries = [Path(entry) for entry in listed if not entry.name.startswith(".")]
    except OSError as error:
        raise of_system(error) or error from None
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise UserError(f"{here}: a link loop: it leads back to a folder that holds it; remove the link")
    folders = {entry for entry in entries if entry.is_dir()}
    for entry in sorted(set(entries) - folders):
        if entry.is_file() or not entry.exists():  # a broken link, for the checks to name; a pipe's reader would hang
            yield prefix + entry.name
    for entry in sorted(folders):
        if entry.name != "__MACOSX":
            yield from _walk(folder, f"{prefix}{entry.name}/", (*above, identity))


def need_plain_names(folder: Path, paths: Iterable[str]) -> None:
    """UserError when names cannot be stored or listed, an id per line: with a line break in them, or not in UTF-8."""
    odd = [ascii(path) for path in paths if "\n" in path or "\r" in path or not _is_utf8(path)]
    if odd:
        raise UserError(
            f"{folder}: {len(odd)} {'name has' if len(odd) == 1 else 'names have'} a line break or bytes that are not "
            f"UTF-8: {some(odd)}; rename them (`convmv -f latin1 -t utf8` for old encodings)"
        )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listing(raw: Path, pattern: str) -> dict[str, str]:
    """Files below `raw` that fit a pattern without {split}: path by id."""
    before, after = pattern.split("{id}", maxsplit=1)
    fits = re.compile(re.escape(before) + "(.+)" + re.escape(after), re.DOTALL)
    top = before.rpartition("/")[0]
    if not (raw / top).is_dir():
        return {}
    paths = (f"{top}/{path}" if top else path for path in walk(raw / top))
    found = {match[1]: path for path in paths if (match := fits.fullmatch(path))}
    need_plain_names(raw, found.values())
    return found


def files_of(raw: Path, layout: Layout, split: str) -> Files:
    """What lies in the raw folder for one split. A file that fits several patterns belongs to the longest."""
    patterns = {k: p.replace("{split}", split) for k, p in layout.model_dump(exclude={"ids"}).items() if p is not None}
    found: dict[str, dict[str, str]] = {}
    taken: set[str] = set()
    for kind in sorted(patterns, key=lambda kind: -len(patterns[kind])):
        found[kind] = {id_: path for id_, path in _listing(raw, patterns[kind]).items() if path not in taken}
        taken |= set(found[kind].values())
    return Files(found["image"], found["label"], found.get("instance", {}))


def read_ids(lines: Iterable[str], known: Collection[str]) -> list[str]:
    """The ids in the lines of a list, each once. Spaces around an id count only if a file is called like that."""
    ids = (line if line in known else line.strip() for line in lines)
    return list(dict.fromkeys(id_ for id_ in ids if id_))


def _listed_ids(card: Card, raw: Path, split: str, known: Collection[str]) -> list[str] | None:
    """The ids that the split's list file names; None if the layout has none."""
    if card.layout.ids is None:
        return None
    path = raw / card.layout.ids.replace("{split}", split)
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it must hold the ids of {split}, {LISTS}") from None
    except UserError as error:
        raise UserError(f"{error}; it must hold the ids of {split}, {LISTS}") from None
    return read_ids(lines, known)


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
        with suppress(UserError):  # of a folder that nobody asked for
            if not _listing(folder, pattern):
                continue
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
    ids = _listed_ids(card, raw, split, files.image.keys() | files.label.keys())
    for id_ in sorted(files.image.keys() | files.label.keys()) if ids is None else sorted(ids):
        image, label = files.image.get(id_), files.label.get(id_)
        missing = None
        if image is None and label is None:
            missing = f"{expected['ids']}: lists {id_}, of which there is neither photo nor label map"
        elif label is None:
            missing = f"{image}: has no label map (expected {_place(raw, expected['label'].replace('{id}', id_))})"
        elif image is None:
            missing = f"{label}: has no photo (expected {_place(raw, expected['image'].replace('{id}', id_))})"
        yield Pair(role, id_, image, label, files.instance.get(id_), missing)


def _place(raw: Path, path: str) -> str:
    """A path where a file is missing, and what is there in its place."""
    what = not_a_file(raw / path)
    return path if what in (None, "not there") else f"{path}, which is {what}"


def find_pairs(card: Card, raw: Path) -> list[Pair]:
    """Every pair of the layout, sorted by split and id; a file whose partner is missing is a pair too."""
    if not raw.is_dir():
        raise UserError(
            f"{raw}: no such folder; set `raw` in params.yaml to the folder that holds the raw pairs of "
            f"{card.name} (data/{card.name}/README.md says how to obtain them)"
        )
    return [pair for role, split in sorted(card.splits.items()) for pair in _pairs(card, raw, role, split)]

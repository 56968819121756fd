"""The class list of a proposed card: names, colours, and which class means that nobody knows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.maps import Color, Key, Maps
from dpgan.data.propose.names import Named, find_names
from dpgan.data.propose.words import number, some
from dpgan.errors import UserError
from dpgan.labels import ClassInfo

VOID = re.compile(r"void|unlabel+ed|not.?labell?ed|unknown|undefined|ignored?|don.?t.?care", re.I)


class Classes(NamedTuple):
    """The rows of the card, and what to tell of them."""

    rows: list[ClassInfo]
    found: list[str]
    suspicious: list[str]


class _Row(NamedTuple):
    key: Key  # what the maps hold
    id: int
    name: str
    color: Color
    named: bool  # by a file


def voc_color(index: int) -> Color:
    """PASCAL VOC's colour of a class: bits 0, 3, 6 of the index make the high bits of red, 1, 4, 7 of green, ..."""
    red, green, blue = (sum(((index >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3))
    return red, green, blue


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, or the first of name_2, name_3, ... that is not taken."""
    taken, candidate, count = set(taken), name, 2
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate


def _numbered(named: list[Named], seen: set[int]) -> list[Named]:
    """Names without ids count from 0, or from 1 where the maps hold an id for the last one of these."""
    if any(row.id is not None for row in named):
        return named
    first = 1 if max(seen - {255}, default=0) == len(named) else 0
    return [row._replace(id=first + i) for i, row in enumerate(named)]


def _by_id(maps: Maps, named: list[Named]) -> list[_Row]:
    """Rows of maps that hold ids: those that are named, and those that are seen."""
    seen = {key for key in maps.pixels if isinstance(key, int)}
    names = {row.id: row for row in _numbered(named, seen) if row.id is not None}
    ramp = all(color == (i, i, i) for i, color in maps.palette.items())  # a palette that says nothing
    rows: list[_Row] = []
    for id_ in sorted(seen | set(names)):
        own = names.get(id_)
        plain = "void" if id_ == 255 else f"class_{id_}"
        name = own.name if own else _free(plain, [row.name for row in named])
        color = (own.color if own else None) or (None if ramp else maps.palette.get(id_))
        rows.append(_Row(id_, id_, name, color or ((0, 0, 0) if id_ == 255 else voc_color(id_ + 1)), own is not None))
    return rows


def _by_color(maps: Maps, named: list[Named]) -> list[_Row]:
    """Rows of maps that hold colours; ids are numbers of our own unless a file gives them."""
    rows: list[_Row] = []
    for row in named:
        if row.color is not None and row.color not in {other.key for other in rows}:
            rows.append(_Row(row.color, len(rows) if row.id is None else row.id, row.name, row.color, True))
    known = {row.key for row in rows}
    strangers = sorted(key for key in maps.pixels if isinstance(key, tuple) and key not in known)
    grey = not rows and all(len(set(color)) == 1 for color in strangers)  # ids, saved as RGB
    free = iter(sorted(set(range(256)) - {row.id for row in rows}))
    for color in strangers:
        id_ = color[0] if grey else next(free)
        plain = f"class_{id_}" if grey and id_ != 255 else "void" if grey else "color_{:02x}{:02x}{:02x}".format(*color)
        rows.append(_Row(color, id_, _free(plain, [row.name for row in rows]), color, False))
    return rows


def _told_names(path: str | None, rows: list[_Row], maps: Maps) -> list[str]:
    """Whether a file names the classes, and which of them do not occur."""
    known = [row for row in rows if row.named]
    if not known:
        return ["No file names the classes: give them names in the card."]
    absent = [row.name for row in known if row.key not in maps.pixels]
    seldom = [f"Named, but in no map that was looked at: {some(absent, 8)}."] if absent else []
    return [f"{path} names {number(len(known), 'class')}.", *seldom]


def propose_classes(folder: Path, files: list[str], maps: Maps) -> Classes:
    """Names from a file if one fits, colours from it or from the maps, void by name or by 255; the rest is scored."""
    path, named = find_names(folder, files)
    rows = _by_color(maps, named) if maps.encoding == "colors" else _by_id(maps, named)
    void = [row for row in rows if VOID.fullmatch(row.name) or (row.id == 255 and not row.named)]
    if len(rows) - len(void) < 2:
        raise UserError(
            f"{folder}: the label maps hold {number(len(rows), 'class')} ({some(row.name for row in rows)}); two at "
            "least, beside void, are needed to paint by"
        )
    if len(rows) > 255:
        raise UserError(f"{folder}: {path} and the label maps make {len(rows)} classes; a card can list 255")
    found, suspicious = _told_names(path, rows, maps), []
    if void:
        reason = "by name" if any(row.named for row in void) else "255 means don't care in most datasets"
        found.append(f"Void, without loss or score: {some(row.name for row in void)} ({reason}).")
    else:
        found.append(
            f"No class is void. If one means `unlabelled` (often the first or last: {rows[0].name}, {rows[-1].name}), "
            "give it `void: true` in place of `evaluate: true`."
        )
    if maps.encoding == "colors" and all(len(set(row.color)) == 1 for row in rows):
        found.append("All colours are grey: these are ids, saved as RGB.")
    strangers = [row.name for row in rows if not row.named and row not in void]
    if strangers and any(row.named for row in rows):
        suspicious.append(
            f"{path} has no name for {some(strangers, 5)}: is it the list of these maps? Mend `classes` in the card."
        )
    lone = [row.name for row in rows if maps.maps[row.key] == 1]
    if lone and maps.decoded >= 10:
        suspicious.append(
            f"In one map only: {some(lone, 8)}. Too little to learn from, or a slip of the pen: look at that map."
        )
    return Classes(
        [
            ClassInfo(id=row.id, name=row.name, color=row.color, evaluate=row not in void, void=row in void)
            for row in rows
        ],
        found,
        suspicious,
    )

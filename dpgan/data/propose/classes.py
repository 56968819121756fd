"""The class list of a proposed card: names, colours, and which class means that nobody knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.maps import Color, Maps
from dpgan.data.propose.names import Named, find_names
from dpgan.data.propose.words import some
from dpgan.errors import UserError
from dpgan.labels import ClassInfo

VOID = re.compile(r"void|unlabel+ed|unknown|undefined|ignored?|don.?t.?care|not.?labell?ed", re.I)


class Classes(NamedTuple):
    """The rows of the card, and what to tell of them."""

    rows: list[ClassInfo]
    found: list[str]
    suspicious: list[str]


def voc_color(index: int) -> Color:
    """PASCAL VOC's colour of a class: bits 0, 3, 6 of the index make the high bits of red, 1, 4, 7 of green, ..."""
    red, green, blue = (sum(((index >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3))
    return red, green, blue


def _numbered(named: list[Named], seen: set[int]) -> list[Named]:
    """Names without ids count from 0, or from 1 where the maps hold one id more than that and 0 is left over."""
    if any(row.id is not None for row in named):
        return named
    ids = seen - {255}
    first = 1 if ids and max(ids) == len(named) else 0
    return [row._replace(id=first + i) for i, row in enumerate(named)]


def _by_id(maps: Maps, named: list[Named]) -> list[tuple[int, str, Color, bool]]:
    """Rows (id, name, colour, is named) of maps that hold ids."""
    seen = {key for key in maps.pixels if isinstance(key, int)}
    names = {row.id: row for row in _numbered(named, seen)}
    ramp = all(color == (i, i, i) for i, color in maps.palette.items())
    rows = []
    for id_ in sorted(seen | {id_ for id_ in names if id_ is not None}):
        row = names.get(id_)
        color = row.color if row and row.color else None if ramp else maps.palette.get(id_)
        void = id_ == 255
        name = row.name if row else "void" if void else f"class_{id_}"
        rows.append((id_, name, color or ((0, 0, 0) if void else voc_color(id_ + 1)), row is not None))
    return rows


def _by_color(maps: Maps, named: list[Named]) -> list[tuple[int, str, Color, bool]]:
    """Rows of maps that hold colours; ids are numbers of our own unless a file gives them."""
    rows: list[tuple[int, str, Color, bool]] = []
    taken: set[Color] = set()
    for row in named:
        if row.color is not None and row.color not in taken:
            rows.append((row.id if row.id is not None else len(rows), row.name, row.color, True))
            taken.add(row.color)
    free = iter(sorted(set(range(256)) - {row[0] for row in rows}))
    for color in sorted(key for key in maps.pixels if isinstance(key, tuple) and key not in taken):
        rows.append((next(free), "color_{:02x}{:02x}{:02x}".format(*color), color, False))
    return rows


def _told_names(
    path: str | None, rows: list[tuple[int, str, Color, bool]], seen: set[object], by_color: bool
) -> list[str]:
    known = [name for _, name, _, is_named in rows if is_named]
    if path is None or not known:
        return ["No file names the classes: give them names in the card."]
    absent = [name for id_, name, color, is_named in rows if is_named and (color if by_color else id_) not in seen]
    told = [f"{path} names {len(known)} classes."]
    if absent:
        told.append(f"Named, but in no map that was looked at: {some(absent, 8)}.")
    return told


def propose_classes(folder: Path, files: list[str], maps: Maps) -> Classes:
    """Names from a file if one fits, colours from it or from the maps, void by name or by 255; the rest is scored."""
    path, named = find_names(folder, files)
    by_color = maps.encoding == "colors"
    rows = _by_color(maps, named) if by_color else _by_id(maps, named)
    seen: set[object] = set(maps.pixels)
    found, suspicious = _told_names(path, rows, seen, by_color), []
    strangers = [row[1] for row in rows if not row[3] and row[0] != 255]
    if strangers and any(row[3] for row in rows):
        suspicious.append(
            f"{path} has no name for {some(strangers, 5)}: is it the list of these maps? Mend `classes` in the card."
        )
    void = {row[1] for row in rows if VOID.fullmatch(row[1])}
    if len({row[1] for row in rows} - void) < 2:
        raise UserError(
            f"{folder}: the label maps hold {len(rows)} class{'es' * (len(rows) != 1)} "
            f"({', '.join(row[1] for row in rows)}); two at least, beside void, are needed to paint by"
        )
    if void:
        named_so = any(row[3] for row in rows if row[1] in void)
        reason = "by its name" if named_so else "255 means don't care in most datasets"
        found.append(f"Void, without loss or score: {', '.join(sorted(void))} ({reason}).")
    else:
        example = rows[0][1]
        found.append(
            f"No class is void. If one means `unlabelled` (often the first: {example}), give it `void: true` in place "
            "of `evaluate: true`."
        )
    lone = [row[1] for row in rows if maps.maps[row[2] if by_color else row[0]] == 1]
    if lone and maps.decoded >= 10:
        suspicious.append(
            f"In one map only: {some(lone, 8)}. Too little to learn from, or a slip of the pen: look at that map."
        )
    if by_color and all(isinstance(key, tuple) and len(set(key)) == 1 for key in maps.pixels):
        found.append("All colours are grey: these are ids, saved as RGB.")
    return Classes(
        [
            ClassInfo(id=id_, name=name, color=color, evaluate=name not in void, void=name in void)
            for id_, name, color, _ in rows
        ],
        found,
        suspicious,
    )

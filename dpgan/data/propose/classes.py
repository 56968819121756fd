"""The class list of a proposed card: names, colours, and which class means that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.decide import Table, decide, is_void
from dpgan.data.propose.formats import Color
from dpgan.data.propose.maps import Key, Maps
from dpgan.data.propose.names import Lists
from dpgan.data.propose.words import number, some
from dpgan.errors import UserError
from dpgan.labels import ClassInfo


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


def _free_ids(taken: Iterable[int]) -> Iterator[int]:
    return iter(sorted(set(range(256)) - set(taken)))


def _by_id(maps: Maps, table: Table | None) -> list[_Row]:
    """Rows of maps that hold ids: those that are named, and those that a map holds."""
    names = table.names if table else {}
    spare = table.spare if table else ()
    called = [row.name for row in (*names.values(), *spare)]
    ramp = all(color == (i, i, i) for i, color in maps.palette.items())  # a palette that says nothing
    rows: list[_Row] = []
    for id_ in sorted(key for key in maps.pixels.keys() | names.keys() if isinstance(key, int)):
        own = names.get(id_)
        name = own.name if own else _free("void" if id_ == 255 else f"class_{id_}", called)
        color = (own.color if own else None) or (None if ramp else maps.palette.get(id_))
        rows.append(_Row(id_, id_, name, color or ((0, 0, 0) if id_ == 255 else voc_color(id_ + 1)), own is not None))
    free = _free_ids(row.id for row in rows)
    rows += [_Row(id_, id_, row.name, row.color or voc_color(id_ + 1), True) for row, id_ in zip(spare, free)]  # noqa: B905
    return sorted(rows, key=lambda row: row.id)


def _by_color(maps: Maps, table: Table | None) -> list[_Row]:
    """Rows of maps that hold colours; ids are numbers of our own unless a file gives them or all colours are grey."""
    keys = [key for key in maps.pixels if isinstance(key, tuple)]
    grey = all(len(set(color)) == 1 for color in keys)  # ids, saved as RGB
    names = [(key, row) for key, row in (table.names if table else {}).items() if isinstance(key, tuple)]
    grey = grey and all(len(set(color)) == 1 for color, _ in names)
    rows = [
        _Row(key, key[0] if grey else i if row.id is None else row.id, row.name, key, True)
        for i, (key, row) in enumerate(names)
    ]
    known = {row.key for row in rows}
    free = _free_ids(row.id for row in rows)
    for color in sorted(key for key in keys if key not in known):
        id_ = color[0] if grey else next(free)
        plain = f"class_{id_}" if grey and id_ != 255 else "void" if grey else "color_{:02x}{:02x}{:02x}".format(*color)
        rows.append(_Row(color, id_, _free(plain, [row.name for row in rows]), color, False))
    return rows


def _absent(rows: list[_Row], maps: Maps) -> list[str]:
    absent = [row.name for row in rows if row.named and row.key not in maps.pixels]
    return [f"Named, but in no map that was looked at: {some(absent, 8)}."] if absent else []


def _one_class(folder: Path, rows: list[_Row], void: list[_Row]) -> UserError:
    """What to say if there are no two classes to paint by."""
    taken = next((row for row in void if row.id == 255 and not row.named), None)
    hint = ""
    if taken and len(rows) == 2:
        low = next(row.id for row in rows if row is not taken)
        hint = (
            ". 255 was taken for void (don't care). If it is a class, write classes.txt there, one class per "
            f"line: `{low}: background` and `255: object`; then run the command again"
        )
    return UserError(
        f"{folder}: the label maps hold {number(len(rows), 'class')} ({some(row.name for row in rows)}); two at "
        f"least, not counting void, are needed to paint by{hint}"
    )


def propose_classes(folder: Path, lists: Lists, maps: Maps) -> Classes:
    """Names from the lists if they are sure, colours from them or from the maps, void by name or by 255."""
    table, told, odd = decide(folder, lists, maps)
    rows = _by_color(maps, table) if maps.encoding == "colors" else _by_id(maps, table)
    path = table.path if table else None
    void = [row for row in rows if is_void(row.name) or (row.id == 255 and not row.named)]
    if len(rows) - len(void) < 2:
        raise _one_class(folder, rows, void)
    if len(rows) > 255:
        raise UserError(f"{folder}: {path} and the label maps make {len(rows)} classes; a card can list 255")
    found = [*told, *_absent(rows, maps)] if table else ["No file names the classes: give them names in the card."]
    suspicious = list(odd)
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
            f"{path} has no name for {some(strangers, 5)}: is it the list of these maps? Correct `classes` in the card."
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

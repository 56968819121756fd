"""Which class a value of the label maps is: what the lists say, matched with what the maps hold. Pure.

A table is taken only if it is sure. If several readings are possible, or two lists disagree, the user is asked: a wrong
table would pass every later check.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.formats import Color, Named, UnclearError
from dpgan.data.propose.maps import Key, Maps
from dpgan.data.propose.names import Lists, Reading
from dpgan.data.propose.words import number, some
from dpgan.errors import UserError

VOID = re.compile(
    r"void|un.?label+ed|no.?label|not.?labell?ed|unannotated|unknown|undefined|ignored?|don.?t.?care", re.I
)
BACKGROUND = re.compile(r"back.?ground|bg|none|nothing", re.I)
SHOWN = 8  # names of a reading in a message


class Table(NamedTuple):
    """One way to name what the maps hold."""

    path: str
    how: str
    names: dict[Key, Named]
    explicit: bool  # by ids or colours that the file gives
    spare: tuple[Named, ...] = ()  # named, and of no value or colour of the maps


class Decision(NamedTuple):
    """The table that is taken, and what to report of it."""

    table: Table | None
    found: list[str]
    suspicious: list[str]


class Held(NamedTuple):
    """What the maps hold, as lists may call it."""

    keys: set[Key]
    values: list[int]  # raw values, sorted; empty if the maps hold colours that are no grey values
    colors: dict[Color, Key]  # key by colour, of unused palette entries too; empty if the maps have no colours
    is_rgb: bool

    def key(self, value: int) -> Key:
        """The key of a raw value, whether a map holds it or not."""
        return (value, value, value) if self.is_rgb else value


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip()


def is_void(name: str) -> bool:
    """Whether a class is called as what nobody cares about."""
    return VOID.fullmatch(_plain(name)) is not None


def _is_background(name: str) -> bool:
    return is_void(name) or BACKGROUND.fullmatch(_plain(name)) is not None


def held(maps: Maps) -> Held:
    """What a sample of maps holds, by value and by colour."""
    keys = set(maps.pixels)
    if maps.encoding == "colors":
        colors = sorted(key for key in keys if isinstance(key, tuple))
        grey = all(len(set(color)) == 1 for color in colors)
        return Held(keys, [color[0] for color in colors] if grey else [], {color: color for color in colors}, True)
    values = sorted(key for key in keys if isinstance(key, int))
    if all(color == (i, i, i) for i, color in maps.palette.items()):  # none, or one that says nothing
        return Held(keys, values, {}, False)
    by_color: dict[Color, Key] = {}
    for index in [*values, *sorted(maps.palette)]:
        if index in maps.palette:
            by_color.setdefault(maps.palette[index], index)
    return Held(keys, values, by_color, False)


def _by_color(reading: Reading, held: Held) -> Table | None:
    """The names by their colours; None if less than half of what the maps hold has a colour of the list."""
    colors = held.colors
    if not held.is_rgb and not colors and all(row.color and len(set(row.color)) == 1 for row in reading.rows):
        colors = {(v, v, v): v for v in range(256)}  # Supervisely's machine colours of a grey map
    names: dict[Key, Named] = {}
    spare = []
    for row in reading.rows:
        key = colors.get(row.color) if row.color else None
        if key is None and held.is_rgb:
            key = row.color
        if key is None or key in names:
            spare.append(row)
        else:
            names[key] = row
    if 2 * len(names.keys() & held.keys) < len(held.keys) or not names.keys() & held.keys:
        return None
    return Table(reading.path, f"by colour, {reading.form}", names, True, tuple(spare))


def _table(reading: Reading, held: Held, ids: list[int], how: str, explicit: bool = False) -> Table:
    names = {held.key(i): row for i, row in zip(ids, reading.rows, strict=True)}
    return Table(reading.path, f"{how}, {reading.form}", names, explicit)


def _by_id(reading: Reading, held: Held) -> list[Table]:
    """The names by the ids that the list gives; two tables if the maps may count from another id."""
    ids = [row.id for row in reading.rows if row.id is not None]
    values = [v for v in held.values if v != 255 or 255 in ids]
    known = set(values) & set(ids)
    if held.values == [0, 255] and len(ids) == 2 and 255 not in ids:
        return [_table(reading, held, [0, 255], "two values, two names: 255 is no void", True)]
    strangers = set(values) - known - {0}
    if not known or 2 * len(strangers) > len(values):
        raise UnclearError(f"it names the ids {some(ids, SHOWN)}, and the label maps hold {some(held.values, SHOWN)}")
    tables = [_table(reading, held, ids, "by id", True)]
    low, high = sorted(ids), sorted(values)
    for step in (-1, 1):
        if len(low) > 1 and [i + step for i in low] == high and low == list(range(low[0], low[0] + len(low))):
            tables.append(
                _table(reading, held, [i + step for i in ids], f"by id {'less' if step < 0 else 'plus'} 1", True)
            )
    return tables


def _in_order(reading: Reading, held: Held) -> list[Table]:
    """The possible tables of names without ids; one if it is sure."""
    names, values = [row.name for row in reading.rows], held.values
    n, rest = len(names), [v for v in values if v != 255]
    top = max(rest, default=0)
    from_0 = _table(reading, held, list(range(n)), "counted from 0") if top < n else None
    from_1 = _table(reading, held, list(range(1, n + 1)), "counted from 1") if top <= n < 255 else None
    by_value = _table(reading, held, values, "the values in order") if len(values) == n else None
    if len(rest) == n and len(values) > n:
        by_value = _table(reading, held, rest, "the values in order, 255 left out")
    background_first = _is_background(names[0])
    if values == [0, 255]:  # with 255 as void, one class would be left
        if n == 1:
            return [_table(reading, held, [255], "255 is the class, 0 is everything else")]
        return [by_value._replace(how=f"two values, two names: 255 is no void, {reading.form}")] if by_value else []
    if rest == list(range(n)):
        return [t for t in [from_0] if t]
    if rest == list(range(1, n + 1)):
        return [t for t in [from_1] if t]
    if by_value and rest == list(range(n - 1)) and is_void(names[-1]):  # 255 is the last name
        return [by_value]
    if from_0 and not by_value and (background_first or (rest[:1] == [0] and top == n - 1)):
        return [from_0]
    return [t for t in (from_0, from_1, by_value) if t]


def tables(reading: Reading, held: Held) -> list[Table]:
    """Every table that a reading may mean; one if it is sure. `UnclearError` if it does not fit the maps."""
    colored = all(row.color for row in reading.rows)
    numbered = reading.rows[0].id is not None
    by_color = _by_color(reading, held) if any(row.color for row in reading.rows) else None
    if not held.values:
        if by_color is None:
            what = "its colours are not those of the label maps" if colored else "it gives no colours"
            raise UnclearError(f"{what}, and the label maps hold colours; write `name,r,g,b`, one class per line")
        return [by_color]
    if numbered:
        found = _by_id(reading, held)
        if by_color and held.colors and not held.is_rgb and by_color.names.keys() >= held.keys - {255}:
            found += [by_color] if not _agree(found[0], by_color, held.keys) else []
        return found
    if by_color:
        return [by_color]
    if colored and not held.is_rgb and held.colors.keys() & {r.color for r in reading.rows if r.color} - {(0, 0, 0)}:
        raise UnclearError(
            "its colours are not those of the label maps' palette; give ids: `id: name`, one class per line"
        )
    found = _in_order(reading, held)
    if not found:
        raise UnclearError(
            f"it has {number(len(reading.rows), 'name')}, and the label maps hold "
            f"{number(len(held.values), 'value')}: {some(held.values, SHOWN)}"
        )
    return found


def _same(one: Named, other: Named) -> bool:
    a, b = one.name.casefold(), other.name.casefold()
    return a == b or re.split(r"[,;]", a)[0] == b or re.split(r"[,;]", b)[0] == a


def _agree(one: Table, other: Table, keys: Collection[Key]) -> bool:
    """Whether two tables call nothing that the maps hold by different names."""
    return all(_same(one.names[k], other.names[k]) for k in keys if k in one.names and k in other.names)


def _said(table: Table, held: Held) -> str:
    """What a table would mean, in one line."""

    def value(key: Key) -> str:
        return str(key[0] if isinstance(key, tuple) and held.values else key)

    order = sorted(held.keys, key=str if not held.values else lambda k: k[0] if isinstance(k, tuple) else k)
    named = [f"{value(key)} = {table.names[key].name}" for key in order if key in table.names]
    absent = [row.name for key, row in table.names.items() if key not in held.keys]
    bare = [value(key) for key in order if key not in table.names]
    more = f"; in no map: {some(absent, SHOWN)}" if absent else ""
    return f"{some(named, SHOWN)}{more}" + (f"; without a name: {some(bare, SHOWN)}" if bare else "")


def _ask(folder: Path, options: list[Table], held: Held, why: str) -> UserError:
    lines = [f"    {table.path}, {table.how}: {_said(table, held)}" for table in options]
    paths = list(dict.fromkeys(table.path for table in options))
    form = "id: name" if held.values else "name,r,g,b"
    rest = f", and rename or remove the other lists ({', '.join(paths)})" if len(paths) > 1 else ""
    return UserError(
        "\n".join([f"{folder}: which value is which class is not sure: {why}", *lines])
        + f"\n  Choose one: write {paths[0] if len(paths) == 1 else 'one list'} as `{form}`, one class per line{rest}; "
        "then run the command again. Nothing was written"
    )


def decide(folder: Path, lists: Lists, maps: Maps) -> Decision:
    """The one table that the lists and the maps leave possible; none without lists. UserError if it is not sure."""
    what = held(maps)
    sure: list[Table] = []
    open_: list[list[Table]] = []
    unused: list[tuple[str, str]] = []
    by_path: dict[str, list[Table]] = {}
    reasons: dict[str, str] = {}
    for reading in lists.readings:
        try:
            by_path.setdefault(reading.path, []).extend(tables(reading, what))
        except UnclearError as error:
            reasons[reading.path] = str(error)
    for path in dict.fromkeys(reading.path for reading in lists.readings):
        options: list[Table] = []
        for table in by_path.get(path, []):  # readings that agree on what the maps hold are one
            if not any(_agree(table, other, what.keys) and not (table.names.keys() ^ other.names.keys()) & what.keys
                       for other in options):  # fmt: skip
                options.append(table)
        if not options:
            unused.append((path, reasons[path]))
        elif len(options) == 1:
            sure.append(options[0])
        else:
            open_.append(options)
    suspicious = list(lists.unused)
    if not sure and open_:
        names = number(len(open_[0][0].names), "name")
        raise _ask(folder, open_[0], what, f"{open_[0][0].path} has {names}, and the label maps hold {_values(what)}.")
    if not sure:
        if unused and what.values:
            told = "; ".join(f"{path}: {why}" for path, why in unused)
            raise UserError(
                f"{folder}: no list of classes fits the label maps ({told}). Write it as `id: name`, one class per "
                "line, or rename it if it is not about these maps; then run the command again. Nothing was written"
            )
        return Decision(
            None, [], [*suspicious, *(f"{p} is not used as a list of classes: {why}." for p, why in unused)]
        )
    best = max(sure, key=lambda t: (len(t.names.keys() & what.keys), t.explicit))
    differing = [table for table in sure if not _agree(best, table, what.keys)]
    differing += [
        table for options in open_ for table in options[:1] if not any(_agree(best, o, what.keys) for o in options)
    ]
    if differing:
        raise _ask(folder, [best, *differing], what, "two lists disagree.")
    others = dict.fromkeys([t.path for t in sure if t is not best] + [o[0].path for o in open_])
    found = [f"{best.path} names {number(len(best.names) + len(best.spare), 'class')} ({best.how})."]
    found += [f"{', '.join(others)} agree{'s' * (len(others) == 1)} with it."] if others else []
    found += [f"{path} is not used as a list of classes: {why}." for path, why in unused]
    return Decision(best, found, suspicious)


def _values(held: Held) -> str:
    return f"the values {some(held.values, SHOWN)}" if held.values else f"{len(held.keys)} colours"

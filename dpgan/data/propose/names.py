"""Class names that lie beside a dataset, in the formats that annotation tools and papers write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FILES = re.compile(r"(.*class.*|.*label.*|.*categor.*|.*palette.*|.*colormap.*|obj)\.(txt|names|csv|json)", re.I)
MOST = 20  # files that are tried: a folder may hold one a photo that is called like this
NUMBERS = re.compile(r"\d{1,3}")
HEADER = re.compile(r"(^|,)\s*\"?(name|class(_?name)?|label|category)\"?\s*(,|$)", re.I)  # of a table


class Named(NamedTuple):
    """A class as a file names it; what the file does not say is None."""

    name: str
    id: int | None
    color: tuple[int, int, int] | None


def _color(values: Any) -> tuple[int, int, int] | None:
    if isinstance(values, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", values):
        values = [int(values[i : i + 2], 16) for i in (1, 3, 5)]
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    if not all(str(v).strip().isdigit() and int(v) <= 255 for v in values):
        return None
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def _line(line: str) -> Named | None:
    """A line of a text file: name; `id name`; `name r g b`; `r g b name`; `name:r,g,b::` (CVAT); with , : ; or tab."""
    fields = [f for f in re.split(r"[,:;\t]\s*|\s+(?=\d)|(?<=\d)\s+", line.strip().replace('"', "")) if f.strip()]
    numbers = [f for f in fields if NUMBERS.fullmatch(f)]
    words = [f.strip() for f in fields if not NUMBERS.fullmatch(f)]
    if not words:
        return None
    color = _color(numbers[-3:]) if len(numbers) >= 3 else None
    ids = numbers[:-3] if color else numbers
    return Named(words[0], int(ids[0]) if len(ids) == 1 else None, color)


def _from_json(content: Any) -> list[Named]:
    for key in ("classes", "labels", "categories", "names"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    if isinstance(content, dict):  # {"0": "sky"}, {"sky": 0} or {"sky": [r, g, b]}
        pairs = [(str(k), v) for k, v in content.items()]
        return [Named(v, int(k), None) for k, v in pairs if k.isdigit() and isinstance(v, str)] or [
            Named(k, v if isinstance(v, int) else None, _color(v)) for k, v in pairs if isinstance(v, int) or _color(v)
        ]
    found = []
    for item in content if isinstance(content, list) else []:
        if isinstance(item, str):
            found.append(Named(item, None, None))
        elif isinstance(item, dict) and isinstance(item.get("name"), str):
            id_ = item.get("id")
            found.append(Named(item["name"], id_ if isinstance(id_, int) else None, _color(item.get("color"))))
    return found


def read_names(path: Path) -> list[Named]:
    """The classes that a file names; none where it is not such a file, or contradicts itself."""
    try:
        text = path.read_text()
        if path.suffix.lower() == ".json":
            found = _from_json(json.loads(text))
        else:
            rows = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            if rows and HEADER.search(rows[0]):
                rows = rows[1:]
            found = [named for row in rows if (named := _line(row))]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return []
    ids = [named.id for named in found if named.id is not None]
    numbered = len(ids) in (0, len(found)) and len(set(ids)) == len(ids) and all(0 <= i <= 255 for i in ids)
    distinct = len({named.name for named in found}) == len(found)
    return found if len(found) >= 2 and numbered and distinct else []


def find_names(folder: Path, files: list[str]) -> tuple[str | None, list[Named]]:
    """The file of the folder that names the classes, and the classes; the shortest path wins."""
    likely = [path for path in files if FILES.fullmatch(path.rpartition("/")[2])]
    for path in sorted(likely, key=lambda p: (p.count("/"), len(p), p))[:MOST]:
        if found := read_names(folder / path):
            return path, found
    return None, []

"""The forms in which annotation tools and papers write class names, ids and colours: one function per form.

A function gets the lines or the content of a file and returns what the file says, or None if the file has another form.
`UnclearError` says why a file that looks like a list of classes cannot be used. Files are data: nothing is executed.
"""

from __future__ import annotations

import ast
import csv
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

Color = tuple[int, int, int]
NAME = (
    "name",
    "classname",
    "labelname",
    "class",
    "classes",
    "label",
    "category",
    "title",
)  # columns, the likeliest first
ID = ("id", "idx", "index", "pixelvalue", "value", "classid", "labelid", "categoryid", "class", "label")
HEX = ("color", "colour", "hex", "rgb", "colorrgb", "hexcolor")
CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))
BREAK = r"(?:\s*[,;:\t]\s*|\s+)"  # between the fields of a line
RGB = r"[\[(]?\s*(\d{1,3})\s*[,;\s]\s*(\d{1,3})\s*[,;\s]\s*(\d{1,3})\s*[\])]?"


class UnclearError(Exception):
    """Why a list of classes is not used."""


class Named(NamedTuple):
    """A class as a file names it; what the file does not say is None."""

    name: str
    id: int | None = None
    color: Color | None = None


class Said(NamedTuple):
    """What a file says of the classes."""

    form: str  # how it was read
    readings: list[list[Named]]  # more than one if the form holds several numberings
    first: int | None = None  # the id of the first name, if the form fixes it for names without ids


def color_of(values: Any) -> Color | None:
    """(r, g, b) from three numbers, "#rrggbb", "rgb(r, g, b)" or "r,g,b"; None if it is no colour."""
    if isinstance(values, str):
        if re.fullmatch(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", values.strip()):
            values = [int(values.strip()[i : i + 2], 16) for i in (1, 3, 5)]
        else:
            values = re.findall(r"\d+", values) if re.fullmatch(r"(rgba?)?[\d\s,;.()\[\]]+", values.strip()) else None
    if not isinstance(values, (list, tuple)) or not 3 <= len(values) <= 5:  # with alpha, which may have a decimal point
        return None
    if not all(str(v).strip().isdigit() and int(v) <= 255 for v in values[:3]):
        return None
    red, green, blue = (int(v) for v in values[:3])
    return red, green, blue


def _number(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) and not isinstance(value, bool) else None


def _every(lines: Sequence[str], pattern: str) -> list[re.Match[str]] | None:
    """The matches of all lines; lines that begin with # and do not match are comments. None if another line differs."""
    matches = [(line, re.fullmatch(pattern, line.strip())) for line in lines if line.strip()]
    if any(match is None and not line.lstrip().startswith("#") for line, match in matches):
        return None
    return [match for _, match in matches if match] or None


# Text: lines


def cvat(lines: Sequence[str]) -> Said | None:
    """CVAT's labelmap.txt: `name:r,g,b:parts:actions`."""
    found = _every(lines, r"(.*):(\d{1,3}),(\d{1,3}),(\d{1,3}):([^:]*):([^:]*)")
    if not found:
        return None
    return Said("CVAT: name:r,g,b:parts:actions", [[Named(m[1], None, color_of([m[2], m[3], m[4]])) for m in found]])


def labelme(lines: Sequence[str]) -> Said | None:
    """labelme's labels.txt: `_background_` is 0; `__ignore__`, the line before it, is -1, which maps hold as 255."""
    names = [line.strip() for line in lines if line.strip()]
    if "_background_" in names[:2]:
        zero = names.index("_background_")
    elif names[:1] == ["__ignore__"]:
        zero = 1
    else:
        return None
    ids = [i - zero if i >= zero else 255 for i in range(len(names))]
    return Said(
        "labelme: _background_ is 0, __ignore__ is 255", [[Named(n, i) for n, i in zip(names, ids, strict=True)]]
    )


def _column(header: list[str], names: Sequence[str], rows: list[list[str]], numeric: bool) -> int | None:
    """The first of the columns called `names` whose cells are (not) numbers."""
    for name in names:
        if name in header:
            at = header.index(name)
            if all((_number(row[at]) is not None) == numeric for row in rows) or (not numeric and name == "name"):
                return at
    return None


def table(lines: Sequence[str], suffix: str) -> Said | None:
    """A table with a header: Roboflow's `Pixel Value, Class`, `name,r,g,b`, `id,name`, ADE20K's objectInfo150, ..."""
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2:
        return None
    top = lines[0].lstrip("# ")
    mark = max("\t,;|", key=top.count)
    if mark not in top and suffix != ".csv":
        return None
    first, *rows = (
        [cell.strip() for cell in row] for row in csv.reader([top, *lines[1:]], delimiter=mark, skipinitialspace=True)
    )
    header = [re.sub(r"[^a-z]", "", cell.lower()) for cell in first]
    if not set(header) & set(NAME) or any(_number(cell) is not None for cell in first):
        return None
    for row in rows:
        if len(row) != len(header) and not (len(row) > len(header) and not any(row[len(header) :])):
            raise UnclearError(f"its header has {len(header)} columns, the line {mark.join(row)!r} has {len(row)}")
    name = _column(header, NAME, rows, numeric=False)
    if name is None:
        return None
    channels = next((c for c in CHANNELS if set(c) <= set(header)), None)
    at = [header.index(channel) for channel in channels] if channels else []
    code = next((header.index(key) for key in HEX if key in header), None)
    colors = [
        color_of([row[i] for i in at]) if at else color_of(row[code]) if code is not None else None for row in rows
    ]
    numberings = [_column(header, ID, rows, numeric=True), _column(header, ("trainid",), rows, numeric=True)]
    told = [i for i in numberings if i is not None and i != name]
    return Said(
        f"a table: {', '.join(first)}",
        [
            [
                Named(row[name], None if i is None else _number(row[i]), color)
                for row, color in zip(rows, colors, strict=True)
            ]
            for i in (told or (None,))
        ],
    )


def colors_and_names(lines: Sequence[str]) -> Said | None:
    """`r g b name` (CamVid's label_colors.txt), also with an id before it."""
    if found := _every(lines, r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+([^\d\s].*)"):
        return Said("id r g b name", [[Named(m[5], int(m[1]), color_of([m[2], m[3], m[4]])) for m in found]])
    if found := _every(lines, RGB + r"[\s,;:]+([^\d\s].*)"):
        return Said("r g b name", [[Named(m[4], None, color_of([m[1], m[2], m[3]])) for m in found]])
    return None


def names_and_colors(lines: Sequence[str]) -> Said | None:
    """`name r g b` or `name #rrggbb`, also with an id before it."""
    end = rf"(?:{RGB}|(#[0-9a-fA-F]{{6}}))"
    for pattern, form in (
        (rf"(\d{{1,3}}){BREAK}(.*?\D.*?){BREAK}{end}", "id name r g b"),
        (rf"()(.*\D.*?){BREAK}{end}", "name r g b"),
    ):
        if found := _every(lines, pattern):
            rows = [
                Named(m[2].rstrip(":=,; "), int(m[1]) if m[1] else None, color_of(m[6] or [m[3], m[4], m[5]]))
                for m in found
            ]
            if len({row.color for row in rows} - {None}) == len(rows):
                return Said(form, [rows])
    return None


def ids_and_names(lines: Sequence[str]) -> Said | None:
    """`id: name` (COCO-Stuff's labels.txt), `id name`, `id,name`."""
    found = _every(lines, r"(-?\d{1,3})(?:\s*[:=,;\t]\s*|\s+)(\S.*)")
    return Said("id: name", [[Named(m[2], int(m[1])) for m in found]]) if found else None


def names_and_ids(lines: Sequence[str]) -> Said | None:
    """`name: id`, `name,id`; `name id` only if the numbers grow and the names alone differ."""
    found = _every(lines, r"(.*\S)\s*[:=,;\t]\s*(-?\d{1,3})") or _every(lines, r"(.*\S)\s+(\d{1,3})")
    if not found or len(found) < 2:
        return None
    names, ids = [m[1].rstrip(":=,; \t") for m in found], [int(m[2]) for m in found]
    if len(set(names)) < len(names) or ids != sorted(set(ids)):
        return None
    return Said("name: id", [[Named(n, i) for n, i in zip(names, ids, strict=True)]])


def plain(lines: Sequence[str]) -> Said | None:
    """One name per line: whatever the line holds is the name."""
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    for i, line in enumerate(lines, 1):
        if not line:
            raise UnclearError(f"line {i} is empty: an id without a name? Write `id: name` on every line, or delete it")
        if re.match(r"#+\s", line):
            raise UnclearError(
                f"line {i} is {line!r}: a comment or a name? Delete it, or write `id: name` on every line"
            )
    numbered = [i for i, line in enumerate(lines, 1) if re.match(r"\d{1,3}\s*[:=,;\t]?\s+\S|\d{1,3}\s*[:=]\s*\S", line)]
    if numbered and 2 * len(numbered) >= len(lines):
        other = next(i for i in range(1, len(lines) + 1) if i not in numbered)
        raise UnclearError(
            f"line {numbered[0]} begins with an id, line {other} does not; write `id: name` on every line"
        )
    if len(lines) == 1 and lines[0].count(",") > 1:
        raise UnclearError("it is one line with commas; write one name per line")
    if all(len(line) > 2 and line[0] == line[-1] == '"' for line in lines):
        lines = [line[1:-1].replace('""', '"') for line in lines]
    elif len(lines) > 1 and all(line.endswith(",") for line in lines[:-1]):
        lines = [line.rstrip(",") for line in lines]
    return Said("one name per line", [[Named(line) for line in lines]]) if lines else None


def from_text(lines: Sequence[str], suffix: str) -> Said | None:
    """What a text file says: the first form that all of its lines have."""
    for form in (cvat, labelme):
        if said := form(lines):
            return said
    if said := table(lines, suffix):
        return said
    for form in (colors_and_names, names_and_colors, ids_and_names, names_and_ids, plain):
        if said := form(lines):
            return said
    return None


# JSON and YAML: content


def supervisely(content: Any) -> Said | None:
    """Supervisely's meta.json: `{"classes": [{"title": ..., "color": "#rrggbb"}]}`; its ids are of its database."""
    items = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(items, list) or not items or not all(isinstance(i, dict) and "title" in i for i in items):
        return None
    return Said(
        "Supervisely: title and color", [[Named(str(i["title"]), None, color_of(i.get("color"))) for i in items]]
    )


def colors_by_name(content: Any) -> Said | None:
    """`{"road": [r, g, b]}`, as Supervisely's obj_class_to_machine_color.json."""
    if not isinstance(content, dict) or not content:
        return None
    rows = [Named(str(name), None, color_of(value)) for name, value in content.items()]
    return Said("name: colour", [rows]) if all(row.color for row in rows) else None


def id2label(content: Any) -> Said | None:
    """`{"0": "road"}` or `{"road": 0}`, alone or as `id2label`/`label2id` (Hugging Face)."""
    if isinstance(content, dict):
        content = content.get("id2label", content.get("label2id", content))
    if not isinstance(content, dict) or not content:
        return None
    pairs = [(key, value) for key, value in content.items() if isinstance(value, (str, int))]
    if len(pairs) == len(content) and all(_number(key) is not None for key, _ in pairs):
        return Said("id: name", [[Named(str(value), _number(key)) for key, value in pairs]])
    if len(pairs) == len(content) and all(_number(value) is not None for _, value in pairs):
        return Said("name: id", [[Named(str(key), _number(value)) for key, value in pairs]])
    return None


def classes_and_palette(content: Any) -> Said | None:
    """mmsegmentation's METAINFO (classes, palette), detectron2's metadata (stuff_classes, stuff_colors)."""
    content = {str(k).lower(): v for k, v in content.items()} if isinstance(content, dict) else {}
    for inner in ("metainfo", "dataset_meta", "meta"):
        if isinstance(content.get(inner), dict):
            return classes_and_palette(content[inner])
    for names_key, colors_key in (("classes", "palette"), ("stuff_classes", "stuff_colors")):
        names = content.get(names_key)
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            continue
        colors = content.get(colors_key) or [None] * len(names)
        if len(colors) != len(names):
            raise UnclearError(f"{names_key} has {len(names)} entries, {colors_key} {len(colors)}")
        rows = [Named(name, None, color_of(c)) for name, c in zip(names, colors, strict=True)]
        first = 1 if content.get("reduce_zero_label") is True else None
        if known := content.get("stuff_dataset_id_to_contiguous_id"):
            order = {int(v): int(k) for k, v in known.items()}
            return Said("detectron2", [rows, [row._replace(id=order.get(i)) for i, row in enumerate(rows)]])
        return Said(f"{names_key} in order", [rows], first)
    return None


def label_studio(content: Any) -> Said | None:
    """Label Studio's parsed labelling configuration: `{"tag": {"type": "BrushLabels", "labels": [...]}}`."""
    for tag in content.values() if isinstance(content, dict) else ():
        if (
            isinstance(tag, dict)
            and str(tag.get("type", "")).endswith("Labels")
            and isinstance(tag.get("labels"), list)
        ):
            return Said("Label Studio: labels in order", [[Named(str(name)) for name in tag["labels"]]])
    return None


def categories(content: Any) -> Said | None:
    """A list of `{"id", "name", "color"}` (COCO and panoptic categories, Label Studio's notes, CVAT, Mapillary)."""
    for key in ("categories", "classes", "labels", "label_map"):
        if isinstance(content, dict) and isinstance(content.get(key), list):
            content = content[key]
    if not isinstance(content, list) or not content or not all(isinstance(i, dict) and "name" in i for i in content):
        return None
    rows = [Named(str(i["name"]), _number(i.get("id", i.get("index"))), color_of(i.get("color"))) for i in content]
    if any(row.id is not None and row.id > 255 for row in rows):  # of a database
        rows = [row._replace(id=None) for row in rows]
        if not all(row.color for row in rows):
            raise UnclearError("its ids are above 255, which no 8-bit label map holds, and it has no colours")
    return Said("categories", [rows])


def names_in_order(content: Any) -> Said | None:
    """`["road", "sky"]`, alone or as `names`/`labels`/`classes` (YOLO's data.yaml; there also `{0: "road"}`)."""
    for key in ("names", "labels", "classes", "categories"):
        if isinstance(content, dict) and key in content:
            return id2label(content[key]) or colors_by_name(content[key]) or names_in_order(content[key])
    if isinstance(content, list) and content and all(isinstance(item, str) for item in content):
        return Said("names in order", [[Named(name) for name in content]])
    return None


def from_content(content: Any) -> Said | None:
    """What the content of a JSON or YAML file says."""
    forms = (supervisely, classes_and_palette, categories, label_studio, id2label, colors_by_name, names_in_order)
    return next((said for form in forms if (said := form(content))), None)


# Python: literals


def cityscapes(tree: ast.AST) -> Said | None:
    """cityscapesScripts: `Label(name, id, trainId, category, catId, hasInstances, ignoreInEval, color)`."""
    rows = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Label":
            try:
                values = [ast.literal_eval(a) for a in node.args] or [ast.literal_eval(k.value) for k in node.keywords]
            except ValueError:
                continue
            if len(values) >= 8:
                rows.append((str(values[0]), _number(values[1]), _number(values[2]), color_of(values[7])))
    if not rows:
        return None
    by_id = [Named(name, id_, color) for name, id_, _, color in rows if id_ is not None and 0 <= id_ <= 255]
    by_train = [Named(name, id_, color) for name, _, id_, color in rows if id_ is not None and 0 <= id_ < 255]
    return Said("cityscapesScripts: id and trainId", [by_id, by_train])


def python_literals(tree: ast.AST) -> Said | None:
    """mmsegmentation's datasets: `classes`, `palette`, `reduce_zero_label` as literals, wherever they are assigned."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.keyword) and node.arg:
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.arg):
            continue
        elif isinstance(node, ast.Dict):
            pairs = [(k.value, v) for k, v in zip(node.keys, node.values, strict=True)
                     if isinstance(k, ast.Constant) and isinstance(k.value, str)]  # fmt: skip
        for key, value in pairs:
            if key.lower() in ("classes", "palette", "reduce_zero_label", "stuff_classes", "stuff_colors", "id2label"):
                try:
                    found.setdefault(key.lower(), ast.literal_eval(value))
                except ValueError:
                    continue
        if isinstance(node, ast.FunctionDef):  # def __init__(self, reduce_zero_label=True)
            named = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            for argument, default in zip(named, node.args.defaults, strict=True):
                if argument.arg == "reduce_zero_label" and isinstance(default, ast.Constant):
                    found.setdefault("reduce_zero_label", default.value)
    return classes_and_palette(found) or (id2label(found) if "id2label" in found else None)


def from_python(text: str) -> Said | None:
    """What a Python file says, read as data."""
    tree = ast.parse(text)
    return cityscapes(tree) or python_literals(tree)


def checked(rows: list[Named], first: int | None = None) -> list[Named]:
    """The rows whose ids an 8-bit map can hold. `first`: the id of the first. `UnclearError` if they contradict."""
    rows = [
        row._replace(name=row.name.strip(), id=row.id if first is None else first + i) for i, row in enumerate(rows)
    ]
    ids = [row.id for row in rows]
    if any(i is None for i in ids) and any(i is not None for i in ids):
        raise UnclearError(f"{next(row.name for row in rows if row.id is None)!r} has no id, and others have one")
    rows = [row for row in rows if row.id is None or 0 <= row.id <= 255]
    if not rows:
        raise UnclearError("none of its ids lies in 0 to 255")
    for what, values in (
        ("name", [row.name for row in rows]),
        ("id", [row.id for row in rows if row.id is not None]),
        ("colour", [row.color for row in rows if row.color and row.id is None]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise UnclearError(f"the {what} {twice[0]!r} stands there twice")
    if any(not row.name for row in rows):
        raise UnclearError("a class has no name")
    return rows

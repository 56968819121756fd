"""Finding the files that name a dataset's classes, and reading each in its form (`formats`)."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml

from dpgan.data.propose.formats import Named, Said, UnclearError, checked, from_content, from_python, from_text

FILES = re.compile(
    r"(.*class.*|.*label.*|.*categor.*|.*palette.*|.*colou?r.*|.*names|.*legend.*|.*ontology.*|.*panoptic.*|obj|"
    r"object.*info.*|meta|metainfo|notes|result|config|.*metadata|data|.*dataset)\.(txt|names|csv|tsv|json|ya?ml|py)",
    re.I,
)
VAGUE = re.compile(r"(obj|meta|notes|result|config|.*metadata|data|dataset)\..*|.*\.py", re.I)  # often something else
MOST = 20  # files that are read
LARGEST = 300_000_000  # bytes
SEGMENTS = re.compile(rb'"segments_info"')


class Reading(NamedTuple):
    """What one file says of the classes, in one way to number them."""

    path: str  # below the folder
    form: str
    rows: list[Named]


class Lists(NamedTuple):
    """The readings of a folder's files, and why others are not used."""

    readings: list[Reading]
    unused: list[str]  # sentences


def decoded(content: bytes) -> str:
    """Text of a file in UTF-8, with or without a byte order mark. `UnclearError` names another encoding."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnclearError("it is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnclearError("it is not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise UnclearError("it holds zero bytes, as UTF-16 or binary files do; save it as UTF-8")
    return text


def _said(path: Path) -> Said | None:
    text = decoded(path.read_bytes())
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return from_content(json.loads(text))
        if suffix in (".yaml", ".yml"):
            return from_content(
                yaml.load(text, Loader=yaml.BaseLoader)
            )  # every scalar as it is written: `no` is a name
        if suffix == ".py":
            return from_python(text)
    except (ValueError, SyntaxError, yaml.YAMLError, RecursionError) as error:
        raise UnclearError(f"it cannot be read as {suffix[1:]}: {str(error).splitlines()[0]}") from None
    return from_text(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), suffix)


def read_names(folder: Path, path: str) -> list[Reading]:
    """What a file says; none if it names no classes. `UnclearError` if it looks like a list and cannot be used."""
    try:
        said = _said(folder / path)
    except OSError as error:
        raise UnclearError(f"it cannot be read: {error.strerror}") from None
    if said is None:
        return []
    return [Reading(path, said.form, checked(rows, said.first)) for rows in said.readings]


def _likely(folder: Path, files: list[str], pairs: Collection[str]) -> list[str]:
    """Files that are called like lists of classes, the nearest to the top first; those of single pairs are left out."""
    called = [path for path in files if FILES.fullmatch(PurePosixPath(path).name)]
    alike = Counter(re.sub(r"\d+", "0", PurePosixPath(path).name) for path in called)
    stems = {PurePosixPath(path).stem for path in pairs}
    likely = [
        path
        for path in called
        if alike[re.sub(r"\d+", "0", PurePosixPath(path).name)] <= 3 and PurePosixPath(path).stem not in stems
    ]
    return sorted(likely, key=lambda p: (p.count("/"), len(p), p))[:MOST]


def find_names(folder: Path, files: list[str], pairs: Collection[str] = ()) -> Lists:
    """The files of the folder that name classes. `pairs`: paths of photos and label maps, which lists of files name."""
    readings: list[Reading] = []
    unused: list[str] = []
    known = {PurePosixPath(path).name for path in pairs} | {PurePosixPath(path).stem for path in pairs}
    for path in _likely(folder, files, pairs):
        vague = VAGUE.fullmatch(PurePosixPath(path).name) is not None
        if not (folder / path).is_file():  # a broken link: `data add` refuses it if it is to be copied
            continue
        try:
            if (folder / path).stat().st_size > LARGEST:
                raise UnclearError(f"it is larger than {LARGEST / 1e6:.0f} MB")
            found = read_names(folder, path)
        except UnclearError as error:
            if not vague:
                unused.append(f"{path} is not used as a list of classes: {error}.")
            continue
        files_named = [row.name for reading in found for row in reading.rows if _is_file(row.name, known)]
        if files_named:
            continue  # a list of files
        readings += found
        if not found and not vague:
            unused.append(f"{path} is not used as a list of classes: no class names in a known form in it.")
    return Lists(readings, unused)


def _is_file(name: str, known: Collection[str]) -> bool:
    """Whether a line names a file, not a class."""
    last = re.split(r"[/\\]", name.split()[0] if name.split() else name)[-1]
    return name in known or last in known or bool(re.search(r"\.(png|jpe?g|tiff?|bmp)$", name, re.I))


def panoptic_json(folder: Path, files: list[str]) -> str | None:
    """A JSON file of the folder that describes segments, as COCO's panoptic format does; None if there is none."""
    likely = [path for path in files if path.lower().endswith(".json")]
    for path in sorted(likely, key=lambda p: ("panoptic" not in p.lower(), p.count("/"), len(p), p))[:MOST]:
        try:
            with (folder / path).open("rb") as file:
                tail = b""
                while block := file.read(1 << 20):
                    if SEGMENTS.search(tail + block):
                        return path
                    tail = block[-32:]
        except OSError:
            continue
    return None

"""Results that are there whole or not at all (written aside, then renamed), and the hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpgan.errors import UserError


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def not_a_file(path: Path) -> str | None:
    """What is at `path` in place of a regular file, as a phrase that follows "is"; None for a regular file.

    Ask before opening what a folder listing gave: opening a named pipe waits for a writer, for ever.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            circle = error.errno == errno.ELOOP
            return "a link that leads back to itself" if circle else f"a broken link: nothing is at {path.readlink()}"
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "not there" if missing else f"out of reach: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without a byte order mark. FileNotFoundError when it is not there, UserError when it
    is another thing.
    """
    if (what := not_a_file(path)) and what != "not there":
        raise UserError(f"{path}: is {what}; put a file in its place")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`content` as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.rename(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends without an error, and goes otherwise."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)

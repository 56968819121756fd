"""Results that are there whole or not at all (written aside, then renamed), and the hashes of files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
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
def sole_holder(path: Path, what: str) -> Iterator[None]:
    """The block runs in one process at a time; UserError if another one is in it, which says who and since when.

    The lock is the kernel's, on the open file `path`: it goes when the process ends, however it ends. No process that
    it starts inherits it. The file stays; what it says counts only while the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{what} is at work already, {file.read()}: wait for it, or end it ({path})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield


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

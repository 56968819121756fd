"""The index: one row per pair of photo and label map, with all that the checks need to know about it.

What is wrong with a pair stands in its row; whether that stops the pipeline is `validation`'s decision. Rows of files
that have not changed since an earlier scan are taken from that scan.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features

from dpgan.cluster import each
from dpgan.data import decode as decoding
from dpgan.data import scan as scanning
from dpgan.data.decode import read_header
from dpgan.data.layout import Pair, find_pairs
from dpgan.data.scan import SCHEMA, scan_pair
from dpgan.errors import TemporaryError, UserError
from dpgan.files import not_a_file
from dpgan.labels import Card, LabelFormat

SAVED_EVERY = 256  # rows: what an interrupted scan loses at most


AGAIN = "wait until nothing writes into the folder, then run this again"
SETTLED = 2.0  # seconds: the coarsest time stamps of a file system (FAT); a later change of the file has another one
LOCKED = 10.0  # seconds that another process may write into the memory of scans


class Seen(NamedTuple):
    """What a scan of a pair depends on, before its files are opened."""

    stamp: str
    settled: bool  # a change from now on gives another stamp


class Rows:
    """Rows of earlier scans in a SQLite file, kept while the files they are about look the same.

    A pair's stamp is all that `scan_pair` is given (the card's label format, where the files lie, their names), the
    code and the decoders that scan, and of each file its size, inode, and times of modification and of status change.
    The last two need each other: archives restore the first, and programs can set it; a rename may leave the other.
    The device is left out: a network share gets another number each time it is mounted.
    """

    def __init__(self, path: Path | None, form: LabelFormat, raw: Path) -> None:
        code = [hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in (scanning, decoding)]
        self.raw, self.path = raw, path
        self.how = f"{code} {_decoders()} {form} {raw.absolute()}"
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._readable():
            self.database = sqlite3.connect(path or ":memory:", timeout=LOCKED)
            self.database.execute("create table if not exists rows (pair text primary key, stamp text, row text)")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """UserError when SQLite cannot read or write its file."""
        try:
            if self.path is not None and (what := not_a_file(self.path)) and what != "not there":
                raise sqlite3.DatabaseError(f"it is {what}")
            yield
        except sqlite3.DatabaseError as error:
            says = f"{self.path}: what earlier scans found is out of reach ({error})"
            if "locked" in str(error):
                raise TemporaryError(f"{says}; wait until the other `dpgan index` is done") from None
            raise UserError(f"{says}; delete it, all files are scanned again") from None

    def see(self, pair: Pair) -> Seen:
        """The pair's files as they are now. UserError when one vanished after it was listed."""
        files = [self.raw / name for name in (pair.image, pair.label, pair.instance) if name is not None]
        stats = [_stat(path) for path in files]
        marks = [(s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        newest = max((max(s.st_mtime, s.st_ctime) for s in stats), default=0.0)
        stamp = hashlib.sha256(f"{self.how} {tuple(pair)} {marks}".encode()).hexdigest()
        return Seen(stamp, settled=newest <= time.time() - SETTLED)

    def known(self, seen: Sequence[Seen]) -> list[dict[str, Any] | None]:
        """The row of every stamp, None where there is none."""
        with self._readable():
            found = dict(self.database.execute("select stamp, row from rows"))
        return [json.loads(found[one.stamp]) if one.stamp in found else None for one in seen]

    def keep(self, rows: Sequence[tuple[Pair, Seen, dict[str, Any]]]) -> None:
        """Rows with their stamps, in the place of earlier ones of the same pairs."""
        values = [
            (json.dumps([pair.split, pair.id]), seen.stamp, json.dumps(row)) for pair, seen, row in rows if seen.settled
        ]
        with self._readable(), self.database:
            self.database.executemany("insert or replace into rows values (?, ?, ?)", values)

    def close(self) -> None:
        self.database.close()


def _decoders() -> list[str | None]:
    """The versions of what decodes: another libjpeg gives other pixels of the same file."""
    return [
        Image.__version__,
        *(features.version(name) for name in ("libjpeg_turbo", *features.get_supported_codecs())),
    ]


def _stat(path: Path) -> os.stat_result:
    """Of the file that a link leads to; of the link itself when it leads nowhere."""
    try:
        return path.stat()
    except OSError:
        try:
            return path.lstat()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}, after the folder was listed; {AGAIN}") from None


class Progress(Protocol):
    """Reports `done` of `total`; `share` is that of the work, when pieces differ."""

    def __call__(self, done: int, total: int, note: str = "", /, *, share: float | None = None) -> None: ...


def _reported(
    results: Generator[tuple[int, Any], None, None], sizes: Sequence[tuple[int, int]], known: int, progress: Progress
) -> Generator[tuple[int, Any], None, None]:
    """Passes results on and reports how many pairs are done, and which share of the pixels of their photos.

    sizes: (width, height) of the photos, by position of the result; `known` pairs were done before.
    """
    pixels = [width * height for width, height in sizes]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    total, work, worked = known + len(sizes), sum(pixels), 0
    note = f"{work / 1e6:.0f} million pixels, {largest[0]}x{largest[1]} at most" if sizes else ""
    progress(known, total, note)
    with closing(results):
        for done, (nth, result) in enumerate(results, known + 1):
            yield nth, result
            worked += pixels[nth]
            progress(done, total, share=worked / work)


def _photo_size(raw: Path, pair: Pair) -> tuple[int, int]:
    """Width and height of a pair's photo; 1, 1 when its header cannot be read."""
    header = read_header(raw / pair.image) if pair.image else None
    return header.size if header else (1, 1)


def scan(
    card: Card, raw: Path, progress: Progress | None = None, workers: int | None = None, memory: Path | None = None
) -> pd.DataFrame:
    """The index of a raw folder: columns of `SCHEMA`, one row per pair that the card selects, sorted by split and id.

    Decodes every file, on all CPUs of Ray; with a `memory`, a file for what is found, only those that are not in it
    yet: an interrupted scan resumes where it was. Bad pairs are rows that say so; UserError only if the folder is
    missing, nothing in it fits the card's layout, or files change during the scan.
    """
    pairs = find_pairs(card, raw)
    with closing(Rows(memory, card.label_format, raw)) as kept:
        seen = [kept.see(pair) for pair in pairs]
        rows = kept.known(seen)
        new = [position for position, row in enumerate(rows) if row is None]
        work = functools.partial(scan_pair, card.label_format, raw.absolute())
        results = each(work, [pairs[position] for position in new], workers)
        if progress:
            sizes = [_photo_size(raw, pairs[position]) for position in new]
            results = _reported(results, sizes, len(pairs) - len(new), progress)
        unsaved: list[tuple[Pair, Seen, dict[str, Any]]] = []
        try:
            with closing(results):
                for nth, row in results:
                    pair, before = pairs[new[nth]], seen[new[nth]]
                    if kept.see(pair).stamp != before.stamp:
                        raise UserError(f"{raw}: files of {row['sample_id']} changed while they were read; {AGAIN}")
                    rows[new[nth]] = row
                    unsaved.append((pair, before, row))
                    if len(unsaved) == SAVED_EVERY:
                        kept.keep(unsaved)
                        unsaved = []
        finally:
            kept.keep(unsaved)
    # Where labels cannot be read, the card cannot tell: the pair stays, for `validation` to report.
    selected = [row for row in rows if row is None or row.get("histogram") is None or card.selects(row["histogram"])]
    return _frame(pa.Table.from_pylist(selected, schema=SCHEMA))


def _frame(table: pa.Table) -> pd.DataFrame:
    """The table with None, never NaN, where a text is missing, and nullable integers."""

    def dtype(kind: pa.DataType) -> str:
        return "Int32" if pa.types.is_integer(kind) else "float64" if pa.types.is_floating(kind) else "object"

    return pd.DataFrame(
        {field.name: pd.Series(table[field.name].to_pylist(), dtype=dtype(field.type)) for field in SCHEMA}
    )


def write_index(frame: pd.DataFrame, path: Path) -> None:
    """Write the index as parquet, whole or not at all; equal content gives equal bytes."""
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False).replace_schema_metadata(None)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, aside)
    aside.replace(path)


def read_index(path: Path) -> pd.DataFrame:
    """The index as `scan` gave it. UserError when the file is none, or of an earlier version of dpgan."""
    if what := not_a_file(path):
        raise UserError(f"{path}: is {what}; `dvc repro index` makes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not an index ({error}); `dvc repro --force index` makes it anew") from None
    if table.schema.names != SCHEMA.names:
        raise UserError(f"{path}: indexed by another version of dpgan; `dvc repro --force index` makes it anew")
    return _frame(table)

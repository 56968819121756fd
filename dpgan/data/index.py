"""The index: one row a pair of photo and label map, with all that the checks need to know about it.

What is wrong with a pair stands in its row; whether that stops the pipeline is `validation`'s decision. Rows of files
that have not changed since an earlier scan are taken from that scan.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpgan.cluster import each
from dpgan.data import scan as scanning
from dpgan.data.layout import Pair, find_pairs
from dpgan.data.scan import SCHEMA, scan_pair
from dpgan.labels import Card

Progress = Callable[[int, int], None]  # (done, total)

SAVED_EVERY = 256  # rows: what an interrupted scan loses at most


class Rows:
    """Rows of earlier scans in a SQLite file, kept while the files they are about look the same.

    A pair's stamp is the size and the modification time of its files, where they lie, and how they were scanned: the
    card's classes and encoding, and the code that scans.
    """

    def __init__(self, path: Path | None, card: Card, raw: Path) -> None:
        code = Path(scanning.__file__).read_bytes()
        how = f"{card.encoding} {[(c.id, c.color) for c in card.classes]} {raw.absolute()}"
        self.raw, self.how = raw, hashlib.sha256(code + how.encode()).hexdigest()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(path or ":memory:", timeout=60)
        self.database.execute("create table if not exists rows (pair text primary key, stamp text, row text)")

    def stamp(self, pair: Pair) -> str:
        files = [self.raw / name for name in (pair.image, pair.label, pair.instance) if name is not None]
        seen = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
        return hashlib.sha256(f"{self.how} {seen}".encode()).hexdigest()

    def known(self, stamps: Sequence[str]) -> list[dict[str, Any] | None]:
        """The row of every stamp, None where there is none."""
        found = dict(self.database.execute("select stamp, row from rows"))
        return [json.loads(found[stamp]) if stamp in found else None for stamp in stamps]

    def keep(self, rows: Sequence[tuple[Pair, str, dict[str, Any]]]) -> None:
        """Rows with their stamps, in the place of earlier ones of the same pairs."""
        values = [(json.dumps([pair.split, pair.id]), stamp, json.dumps(row)) for pair, stamp, row in rows]
        with self.database:
            self.database.executemany("insert or replace into rows values (?, ?, ?)", values)

    def close(self) -> None:
        self.database.close()


def scan(
    card: Card, raw: Path, progress: Progress | None = None, workers: int | None = None, memory: Path | None = None
) -> pd.DataFrame:
    """The index of a raw folder: columns of `SCHEMA`, one row a pair that the card selects, sorted by split and id.

    Decodes every file, on all CPUs of Ray; with a `memory`, a file for what is found, only those that are not in it
    yet: an interrupted scan goes on where it was. Bad pairs are rows that say so; UserError only where the folder is
    missing or nothing in it fits the card's layout.
    """
    pairs = find_pairs(card, raw)
    with closing(Rows(memory, card, raw)) as kept:
        stamps = [kept.stamp(pair) for pair in pairs]
        rows = kept.known(stamps)
        new = [position for position, row in enumerate(rows) if row is None]
        done = len(pairs) - len(new)
        if progress:
            progress(done, len(pairs))
        unsaved: list[tuple[Pair, str, dict[str, Any]]] = []
        work = functools.partial(scan_pair, card, raw.absolute())
        try:
            for nth, row in each(work, [pairs[position] for position in new], workers):
                rows[new[nth]] = row
                unsaved.append((pairs[new[nth]], stamps[new[nth]], row))
                if len(unsaved) == SAVED_EVERY:
                    kept.keep(unsaved)
                    unsaved = []
                done += 1
                if progress:
                    progress(done, len(pairs))
        finally:
            kept.keep(unsaved)
    # Where labels cannot be read, the card cannot tell: the pair stays, for `validation` to tell of it.
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
    """The index as `scan` gave it."""
    return _frame(pq.read_table(path))

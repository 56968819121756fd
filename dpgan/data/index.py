"""The index: one row a pair of photo and label map, with all that the checks need to know about it.

What is wrong with a pair stands in its row (`fault`); whether that stops the pipeline is `validation`'s decision.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpgan.data.layout import find_pairs
from dpgan.data.scan import SCHEMA, scan_pair
from dpgan.labels import Card

Progress = Callable[[int, int], None]  # (done, total)

Job = TypeVar("Job")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """`function` of every job, in order, over `workers` processes (default: all cores; 1: in this process).

    The first exception of a worker is raised here and cancels the rest.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield from _counted(map(function, jobs), len(jobs), progress)
        return
    # Not forked: a fork copies the locks of the parent's threads (progress bars, BLAS) in whatever state
    # they are in, and hangs when one is held.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        chunk = max(1, min(32, len(jobs) // (4 * workers)))
        yield from _counted(pool.map(function, jobs, chunksize=chunk), len(jobs), progress)


def _end_with_parent() -> None:
    """In a worker: end when the parent is killed, instead of waiting for its next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _counted(results: Iterator[Result], total: int, progress: Progress | None) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        yield result
        if progress:
            progress(done, total)


def _frame(table: pa.Table) -> pd.DataFrame:
    """The table with None, never NaN, where a text is missing, and nullable integers."""
    integers = {field.name for field in SCHEMA if pa.types.is_integer(field.type)}
    return pd.DataFrame(
        {
            name: pd.Series(table[name].to_pylist(), dtype="Int32" if name in integers else object)
            for name in SCHEMA.names
        }
    )


def scan(card: Card, raw: Path, progress: Progress | None = None, workers: int | None = None) -> pd.DataFrame:
    """The index of a raw folder: columns of `SCHEMA`, one row a pair that the card selects, sorted by split and id.

    Decodes every file, in parallel processes. Bad pairs are rows with a `fault`; UserError only where the
    folder is missing or nothing in it fits the card's layout.
    """
    rows = list(parallel(functools.partial(scan_pair, card, raw), find_pairs(card, raw), progress, workers))
    kept = [row for row in rows if row.get("histogram") is None or card.selects(row["histogram"])]
    return _frame(pa.Table.from_pylist(kept, schema=SCHEMA))


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

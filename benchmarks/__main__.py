"""`python -m benchmarks [SUITE ...]`: what this code costs, beside a reference, on this machine.

Prints a table a suite, and writes all of it as a pyperf suite (`python -m pyperf show FILE`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pyperf
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Options, Row
from dpgan.hardware import choose_place, device_name

# Suite -> module and rounds. Each has a function of its name that gives rows, and remarks on them.
SUITES = {
    "inference": ("networks", 5),
    "iteration": ("networks", 3),
    "memory": ("networks", 1),
    "data": ("data", 5),
    "scores": ("scores", 5),
    "workers": ("workers", 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all without one")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, help="turns of each pair, instead of the suite's own number")
    parser.add_argument("--batch", type=int, default=1, help="images of an iteration")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - set(SUITES)
    if unknown:
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are: {', '.join(SUITES)}")
    device = choose_place(arguments.device, torch.cuda.is_available(), None).device
    console = Console(width=160)
    console.print(f"{device_name(device)}, torch {torch.__version__}", highlight=False)
    benchmarks = []
    for suite in arguments.suites or SUITES:
        module, rounds = SUITES[suite]
        print(suite, file=sys.stderr, flush=True)
        run: Callable[[Options], Iterator[Row | str]] = getattr(import_module(f"benchmarks.{module}"), suite)
        found = list(run(Options(device, arguments.rounds or rounds, arguments.batch)))
        rows = [row for row in found if isinstance(row, Row)]
        console.print(_table(suite, rows))
        for remark in (line for line in found if isinstance(line, str)):
            console.print(f"  {remark}", highlight=False)
        benchmarks += [benchmark for row in rows for benchmark in _as_pyperf(row)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pyperf.BenchmarkSuite(benchmarks).dump(str(arguments.out), replace=True)
    print(f"written: {arguments.out}")


def _table(suite: str, rows: list[Row]) -> Table:
    table = Table(title=suite, title_justify="left", box=None, pad_edge=False)
    for heading in ("", "reference", "ours", "times less", "quartiles", "target", "bound"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in rows:
        low, middle, high = np.quantile(row.ratios, [0.25, 0.5, 0.75])
        target = "" if row.target is None else f"{row.target:g}"
        met = row.target is None or middle >= row.target
        if row.limit is not None:
            target, met = f"< {_amount(row.limit, row.unit)}", bool(np.median(row.values) < row.limit)
        table.add_row(
            row.name, _amount(np.median(row.reference), row.unit), _amount(np.median(row.values), row.unit),
            f"{middle:.2f}", f"{low:.2f}-{high:.2f}" if len(row.values) > 1 else "",
            target if met else f"{target} missed",
            "" if row.bound is None else f"{row.bound:.2f}",
        )  # fmt: skip
    return table


def _amount(value: float, unit: str) -> str:
    if unit == "byte":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.2f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} us"


def _as_pyperf(row: Row) -> Iterator[pyperf.Benchmark]:
    for who, values in ((row.name, row.values), (f"{row.name} (reference)", row.reference)):
        values = [int(v) if row.unit == "byte" else v for v in values]
        metadata = {"name": who, "unit": row.unit, "loops": 1}
        yield pyperf.Benchmark([pyperf.Run(values, metadata=metadata, collect_metadata=who == row.name)])


if __name__ == "__main__":
    main()

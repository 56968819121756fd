"""Inject the faults one by one, print what came of each, and exit with an error if a promise does not hold."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from chaos import data, nodes, registry, services, tracking, training  # noqa: F401  (they register their faults)
from chaos.faults import FAULTS, Fault, NotHereError, PromiseError
from chaos.lab import Lab


class Row(NamedTuple):
    """A fault and what came of it."""

    fault: Fault
    verdict: str  # "as promised", "broken", "not here"
    happened: str
    lost: int | None
    seconds: float


def inject(fault: Fault, lab: Lab) -> Row:
    """One fault; whatever goes wrong becomes a row."""
    began = time.monotonic()
    try:
        outcome = fault.inject(lab)
        verdict, happened, lost = "as promised", outcome.happened, outcome.lost
    except NotHereError as reason:
        verdict, happened, lost = "not here", str(reason), None
    except PromiseError as error:
        verdict, happened, lost = "broken", str(error), None
    except Exception:  # a mistake in the injection: the other faults are still of use
        verdict, happened, lost = "broken", f"the injection failed: {traceback.format_exc()}", None
    return Row(fault, verdict, happened, lost, time.monotonic() - began)


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| # | fault | promise | what happened | images lost | |", "|---|---|---|---|---|---|"]
    for row in rows:
        happened = " ".join(row.happened.split())
        short = happened if len(happened) < 200 else f"{happened[:200]}..."
        lost = "" if row.lost is None else str(row.lost)
        cells = [str(row.fault.number), row.fault.name, row.fault.promise, short, lost, row.verdict]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    """The exit code: 0 if every promise holds, 1 if one does not."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", type=int, help="their numbers; default: all")
    parser.add_argument("--list", action="store_true", help="print them and inject nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    given = parser.parse_args()
    chosen = [FAULTS[number] for number in sorted(given.faults or FAULTS) if number in FAULTS]
    if unknown := set(given.faults) - FAULTS.keys():
        print(f"error: no such fault: {', '.join(map(str, sorted(unknown)))}; --list names them", file=sys.stderr)
        return 2
    if given.list:
        print(*(f"{fault.number:3}  {fault.name}: {fault.promise}" for fault in chosen), sep="\n")
        return 0
    rows: list[Row] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        lab = Lab(Path(folder))
        try:
            for position, fault in enumerate(chosen, 1):
                left = (time.monotonic() - began) / max(len(rows), 1) * (len(chosen) - len(rows))
                print(f"chaos     {position}/{len(chosen)} {fault.number}: {fault.name}"
                      + (f"  {left / 60:.0f} min left" if rows else ""), flush=True)  # fmt: skip
                rows.append(inject(fault, lab))
                print(f"          {rows[-1].verdict}, {rows[-1].seconds:.0f} s: {rows[-1].happened}", flush=True)
        finally:
            lab.close()
    text = table(rows)
    print(f"\n{text}")
    if given.markdown:
        given.markdown.write_text(f"{text}\n")
    broken = [row for row in rows if row.verdict == "broken"]
    print(f"\n{len(rows) - len(broken)} of {len(rows)} as promised or not to be shown here, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Progress of long work: lines on the terminal, and records for the program that runs a stage."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

# What a line may begin with.
Stage = Literal["render", "check", "index", "prepare", "judge", "train", "read", "evaluate", "promote", "registry"]
RECORDS = "DPGAN_RECORDS"  # a file; when it is set, a stage reports about itself there


def record(kind: str, **facts: Any) -> None:
    """Append a line of JSON to the file that DPGAN_RECORDS names; nothing if it is not set.

    Kinds: `progress` (stage, done, total, text), `run` (run_id: of MLflow), `failure` (exit_code, message).
    """
    if path := os.environ.get(RECORDS):
        with suppress(OSError), Path(path).open("a") as file:  # a full disk must not end a training here
            file.write(json.dumps({"kind": kind, **facts}) + "\n")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Prints `stage  done/total unit  rate  left  note`: in place on a terminal, a line every few seconds elsewhere.

    The first call always prints. The rate counts from it, so neither a start-up nor what an earlier run had done goes
    into it. The time left follows from the rate, or from the share of the work, when its pieces differ. `subject`: what
    the units belong to, at the end of every line.
    """

    def __init__(self, stage: Stage, unit: str = "images", subject: str = "") -> None:
        self.stage, self.unit, self.subject = stage, unit, subject
        self.first: tuple[int, float] | None = None
        self.terminal = sys.stdout.isatty()
        self.every = 0.5 if self.terminal else 10.0
        self.printed = self.began = time.monotonic()

    def __call__(self, done: int, total: int, note: str | float = "", /, *, share: float | None = None) -> None:
        now = time.monotonic()
        starts = self.first is None
        self.first = self.first or (done, now)
        if done < total and now - self.printed < self.every and not starts:
            return
        self.printed = now
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-6)
        facts = [f"{self.stage:<9} {done:>6}/{total} {self.unit}"]
        if rate:
            facts.append(f"{rate:7.1f} {self.unit}/s")
        if done >= total:
            facts.append(f"{_clock(now - self.began)} in all")
        elif rate:
            left = (total - done) / rate if not share else (now - self.first[1]) * (1 / share - 1)
            facts.append(f"{_clock(left)} left")
        facts.append(f"loss {note:.3f}" if isinstance(note, float) else note)
        text = "  ".join(fact for fact in (*facts, self.subject) if fact)
        record("progress", stage=self.stage, done=done, total=total, text=text)
        end = "\n" if done >= total or not self.terminal else ""
        print(f"\r\033[K{text}" if self.terminal else text, end=end, flush=True)

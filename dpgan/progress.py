"""Progress of long work on the terminal: what is done, the rate, and the time left."""

from __future__ import annotations

import sys
import time


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Prints `stage  done/total unit  rate  left  note`: in place on a terminal, a line every few seconds elsewhere."""

    def __init__(self, stage: str, unit: str = "images", start: int = 0) -> None:
        self.stage, self.unit, self.start = stage, unit, start
        self.began = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.every = 0.5 if self.terminal else 10.0
        self.printed = self.began - (self.every if self.terminal else 0)

    def __call__(self, done: int, total: int, note: str | float = "") -> None:
        now = time.monotonic()
        if done < total and now - self.printed < self.every:
            return
        self.printed = now
        seconds = max(now - self.began, 1e-6)
        rate = (done - self.start) / seconds
        left = f"{_clock((total - done) / rate)} left" if done < total and rate > 0 else f"{_clock(seconds)} in all"
        if isinstance(note, float):
            note = f"loss {note:.3f}"
        text = f"{self.stage:<9} {done:>6}/{total} {self.unit}  {rate:7.1f} {self.unit}/s  {left}  {note}"
        end = "\n" if done >= total or not self.terminal else ""
        print(f"\r\033[K{text}" if self.terminal else text, end=end, flush=True)

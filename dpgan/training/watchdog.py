"""A worker that hangs leaves its stacks, and one that runs out of memory says what would fit."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import torch

from dpgan.config import RunSettings, TrainSettings
from dpgan.errors import UserError

_CPU_ALLOCATOR = "can't allocate memory"  # torch raises no class of its own on a CPU


class Watchdog:
    """Writes the stacks of all threads of this process to `path` if `beat` is not called for `seconds`.

    It needs no thread of Python's, so that it also works while a collective operation holds the interpreter. It writes
    once, and starts again with the next `beat`.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.seconds, self.file = path, seconds, path.open("w")

    def beat(self) -> None:
        """This worker makes progress."""
        faulthandler.dump_traceback_later(self.seconds, file=self.file)

    def stacks(self) -> str:
        """What was written; empty if this worker has always made progress."""
        return self.path.read_text()

    def close(self) -> None:
        """Stop watching, and remove the file."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        self.path.unlink(missing_ok=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU, in torch's CPU allocator, or in numpy."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


def what_fits(settings: TrainSettings, run: RunSettings, size: tuple[int, int]) -> UserError:
    """What to say when a worker runs out of memory: how much it held at once, and which setting halves that."""
    height, width = settings.crop or size
    at_once = -(-settings.batch // (run.workers * settings.accumulate))
    held = f"{at_once} images of {height}x{width} at once, generator_width {settings.generator_width}"
    if at_once > 1:
        remedy = f"train: {{accumulate: {2 * settings.accumulate}}} halves the images at once"
    else:
        remedy = "one image is the least: train with a `crop` or smaller widths"
    return UserError(f"params.yaml: a worker ran out of memory ({held}); {remedy}, or take machines with more memory")

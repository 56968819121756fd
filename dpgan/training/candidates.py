"""The generators that a run leaves: the averages that were scored, one file per number of images seen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dpgan.models.generators import Generator
from dpgan.training.checkpoint import save_state


def candidate_path(folder: Path, images: int) -> Path:
    """The file of the candidate at so many images, in a run's folder."""
    return folder / "candidates" / f"images_{images:09d}.safetensors"


def keep_candidates(folder: Path, generator: Generator, images: int, best_ones: Collection[int]) -> None:
    """Save the candidate at so many images; the others go, except the `best_ones`.

    A file's name says what it holds, and it is there before the checkpoint that calls it the best: whatever a crash
    leaves, `result.json` and the weights belong together.
    """
    path = candidate_path(folder, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state(generator, path)
    kept = {candidate_path(folder, number) for number in {images, *best_ones}}
    for other in path.parent.iterdir():
        if other not in kept:
            other.unlink()

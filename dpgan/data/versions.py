"""Versions of the data: DVC, as its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dpgan.errors import UserError


def dvc(root: Path, *words: str) -> str:
    """What `dvc WORDS` prints in the folder `root`; UserError with what it says where it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise UserError(f"dvc {' '.join(words)}: " + "; ".join(said or [f"ended with code {done.returncode}"]))
    return done.stdout


def index_at(revision: str, root: Path, out: Path) -> None:
    """Write build/index.parquet of a git revision to `out`, from DVC's cache or the remote."""
    dvc(root, "get", ".", "build/index.parquet", "--rev", revision, "--out", str(out.absolute()), "--quiet")

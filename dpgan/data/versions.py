"""Versions of raw data, under DVC. The only module that runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dpgan.errors import UserError


def track(folder: Path, root: Path) -> None:
    """Version `folder`, below the project `root`: its content goes into DVC's cache, its hash into `<folder>.dvc`.

    UserError where `root` is no DVC project, or DVC refuses.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(
            f"{root}: not a DVC project, so nothing can be versioned; run `dvc init` here, or use --no-copy"
        )
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(folder.absolute().relative_to(root.absolute()))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()).removeprefix("ERROR: ")
        raise UserError(f"{folder}: DVC could not version it: {said}")

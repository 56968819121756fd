"""What a run was made from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dpgan.errors import UserError
from dpgan.files import file_sha256


def provenance(root: Path) -> dict[str, str]:
    """Tags for a run: the git commit, whether the tree was dirty (dvc.lock apart), the sha256 of dvc.lock."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None or git("rev-parse", "--git-dir") is None:
        raise UserError(f"{root}: not a git repository; a run is named by its commit: clone the project with git")
    lock = root / "dvc.lock"
    return {
        "git.commit": git("rev-parse", "HEAD") or "none",
        "git.dirty": str(bool(git("status", "--porcelain", "--", ".", ":(exclude)*dvc.lock"))).lower(),
        "dvc.lock_sha256": file_sha256(lock) if lock.exists() else "none",
    }

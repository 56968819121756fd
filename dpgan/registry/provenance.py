"""What a run was made from, and the receipt of what came of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpgan.errors import UserError
from dpgan.files import file_sha256

IMAGE_DIGEST = "DPGAN_IMAGE_DIGEST"  # set by whoever starts the container: inside, it cannot be known
_PACKAGES = ("torch", "ray", "nvidia-dali-cuda130", "mlflow", "dvc", "deepspeed", "numpy", "safetensors")
_RECORDED = (
    "run_id", "settings", "seed", "images", "best", "images_per_s", "started", "seconds", "restarts", "commits",
    "hardware", "precision",
    "versions",
)  # fmt: skip


def provenance(root: Path) -> dict[str, str]:
    """Tags for a run: the git commit, whether the tree was dirty (dvc.lock apart), the sha256 of dvc.lock and of
    requirements.lock, the digest of the container image (of the variable DPGAN_IMAGE_DIGEST); "none" where there is
    none."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None or git("rev-parse", "--git-dir") is None:
        raise UserError(f"{root}: not a git repository; a run is named by its commit: clone the project with git")

    def sha256(name: str) -> str:
        return file_sha256(root / name) if (root / name).exists() else "none"

    return {
        "git.commit": git("rev-parse", "HEAD") or "none",
        "git.dirty": str(bool(git("status", "--porcelain", "--", ".", ":(exclude)*dvc.lock"))).lower(),
        "dvc.lock_sha256": sha256("dvc.lock"),
        "requirements.lock_sha256": sha256("requirements.lock"),
        "image.digest": os.environ.get(IMAGE_DIGEST) or "none",
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a training's numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def training_facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the receipt of a trained model says, from build/train/manifest.json; null is what that does not record."""
    return {**manifest["facts"], **{key: manifest.get(key) for key in _RECORDED}}

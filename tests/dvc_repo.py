"""A small DVC repository, for the tests of versions and staging."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dpgan.data.versions import dvc


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    return subprocess.run(["git", *who, *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def make_repo(root: Path, remote: str | Path | None) -> Path:
    """A git repository with DVC in it; `remote` is its default remote."""
    root.mkdir(parents=True)
    git(root, "init", "-q")
    dvc(root, "init", "--quiet")
    dvc(root, "config", "core.autostage", "true")
    if remote is not None:
        dvc(root, "remote", "add", "--quiet", "--default", "storage", str(remote))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "empty")
    return root


def with_prepared(root: Path, prepared: Path) -> Path:
    """`prepared` as build/prepared, the out of a stage `prepare` that copies it."""
    shutil.copytree(prepared, root / "source")
    (root / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: mkdir -p build && cp -r source build/prepared\n    deps: [source]\n"
        "    outs: [build/prepared]\n"
    )
    dvc(root, "repro", "--quiet")
    return root

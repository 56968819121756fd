"""Versions of the data, under DVC: the only module that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dpgan.errors import TemporaryError, UserError
from dpgan.settings import parse_yaml

_REMOTE = ("push", "pull", "fetch")  # what DVC does with the remote


def dvc(root: Path, *words: str) -> str:
    """What `dvc WORDS` prints in the folder `root`; UserError with what it says if it fails, TemporaryError if it had
    to do with a remote on another machine."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        kind = TemporaryError if words[0] in _REMOTE and remote_elsewhere(root) else UserError
        raise kind(f"dvc {' '.join(words)}: " + "; ".join(said or [f"ended with code {done.returncode}"]))
    return done.stdout


def dvc_aloud(root: Path, *words: str) -> None:
    """Run `dvc WORDS` in the folder `root`, its lines as they come; UserError where it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=False)
    if done.returncode:
        raise UserError(f"dvc {' '.join(words)} ended with code {done.returncode}; its lines above say why")


def settings(root: Path) -> dict[str, str]:
    """DVC's settings of the project `root`, all levels together: {"core.remote": name, "remote.NAME.url": ...}.

    DVC shows the URL of a remote that is a folder as an absolute path.
    """
    return dict(line.split("=", 1) for line in dvc(root, "config", "--list").splitlines() if "=" in line)


def use_private_cache(root: Path) -> None:
    """Have a bare `dvc` in the project `root` use the folder that ours uses (dpgan.environment), too."""
    dvc(root, "config", "--local", "core.site_cache_dir", os.environ["DVC_SITE_CACHE_DIR"])


def remote(root: Path) -> str | None:
    """The URL of the default remote, or its folder; None if the project has none."""
    found = settings(root)
    return found.get(f"remote.{found.get('core.remote')}.url")


def remote_elsewhere(root: Path) -> bool:
    """Whether the default remote is on another machine."""
    url = remote(root) or ""
    return "://" in url and not url.startswith("file://")


def need_project(root: Path) -> None:
    """UserError where `root` is no DVC project."""
    if not (root / ".dvc").is_dir():
        raise UserError(
            f"{root}: not a DVC project, so nothing can be versioned; run `dvc init` here, or use --no-copy"
        )


def track(folder: Path, root: Path) -> None:
    """Version `folder`, below the project `root`: its content goes into DVC's cache, its hash into `<folder>.dvc`.

    UserError where DVC refuses.
    """
    dvc(root, "add", str(folder.absolute().relative_to(root.absolute())))


def dataset_at(revision: str, root: Path) -> str:
    """The dataset that params.yaml names at a git revision."""
    done = subprocess.run(
        ["git", "show", f"{revision}:./params.yaml"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"{revision!r} is neither a file nor a git revision with a params.yaml ({done.stderr.strip()}); "
            "`git log --oneline` lists the revisions"
        )
    params = parse_yaml(done.stdout, f"params.yaml of {revision}")
    if "dataset" not in params:
        raise UserError(f"params.yaml of {revision} names no dataset; choose another revision")
    return str(params["dataset"])


def index_at(revision: str, root: Path, out: Path) -> None:
    """Write build/index.parquet of a git revision to `out`, from DVC's cache or the remote.

    UserError where the revision has none in its dvc.lock, or neither cache nor remote holds it.
    """
    try:
        dvc(root, "get", ".", "build/index.parquet", "--rev", revision, "--out", str(out.absolute()))
    except UserError as error:
        raise UserError(
            f"no index of {revision}: {error}. A version can be compared where its dvc.lock was committed, and its "
            "data is in DVC's cache or the remote (`dvc push` there, after `dvc repro`)"
        ) from None

"""The folder that a run of the flow works in: a clone of the project at one commit, with the run's own params.yaml.

There is one a dataset. It stays, so that an interrupted training is gone on with, and a lock on it lets runs of one
dataset wait for each other while two datasets train at once. Raw pairs that are not under DVC stay where they are, and
all workspaces share one DVC cache. What ran is kept in git, on the branch `runs/<dataset>`: before a run a commit with
its params.yaml (so that the commit which its MLflow run names can always be found), after it one with dvc.lock and the
scores.
"""

from __future__ import annotations

import configparser
import fcntl
import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ruamel.yaml import YAML

from dpgan.config import PARAMS, Params, train_settings
from dpgan.data.versions import dvc, remote, settings
from dpgan.errors import TemporaryError, UserError
from dpgan.labels import Card, load_card
from dpgan.settings import load_yaml, parse
from dpgan.stages import need_raw, raw_pointer

REPOSITORY = "DPGAN_REPOSITORY"  # what is trained: a git URL, or a folder of this machine; default: this project
WORKSPACES = "DPGAN_WORKSPACES"  # the folder of the workspaces; on a cluster a path that all nodes share
RECORDED = ("dvc.lock", "data/*/dvc.lock", "build/judge.json", "build/train.json", "build/scores.json")
_REMOTE = ("clone", "fetch", "push")  # what git does with another machine, if the repository is there
_WHO = ("-c", "user.name=dpgan", "-c", "user.email=dpgan@localhost", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class Workspace:
    """Where a run works, on what, and the file descriptor whose lock it holds until it ends."""

    root: Path
    dataset: str
    params: Params
    card: Card
    commit: str  # the one that was asked for
    lock: int

    @property
    def branch(self) -> str:
        return f"runs/{self.dataset}"

    def environment(self) -> dict[str, str]:
        """Of the stages' processes: they run the workspace's code, not the code that this process runs, and need no
        login of Prefect's."""
        given = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        return {**given, "PYTHONPATH": str(self.root)}


def open_workspace(
    dataset: str, revision: str | None, overrides: Mapping[str, Any], run: str, tell: Callable[[str], None]
) -> Workspace:
    """The workspace of `dataset` at `revision` (default: the repository's HEAD), with `overrides` of params.yaml
    ({"train.images": 600}), as soon as no other run is in it. `run` names the run in git.

    UserError for what is not there, or cannot be, before anything is changed; TemporaryError if it may pass.
    """
    url, local = repository()
    home = _home(local)
    home.mkdir(parents=True, exist_ok=True)
    if local is not None and _git(local, "status", "--porcelain", "--untracked-files=no"):
        tell(f"{local}: what is not committed there is not part of this run")
    if not dataset.replace("-", "").replace("_", "").isalnum():  # it names a folder
        raise UserError(f"dataset {dataset!r}: the name of a folder of data/ is needed")
    lock = _lock(home / f"{dataset}.lock", lambda: tell(f"another run of {dataset} is at work; this one waits for it"))
    try:
        root = home / dataset
        _clone(url, root)
        recover(root)
        commit = _check_out(root, revision, url)
        text, params, card = _params(root, local, dataset, overrides)
        train_settings(params, card.preset, root / PARAMS)
        if not raw_pointer(root / params.raw).exists():  # else `dvc pull` brings the data
            need_raw(params.model_copy(update={"raw": str(root / params.raw)}), card)
        _share(root, local, home)
        (root / PARAMS).write_text(text)
        made = Workspace(root, dataset, params, card, commit, lock)
        _begin(made, run)
    except BaseException:
        os.close(lock)
        raise
    return made


def keep(workspace: Workspace, message: str) -> str:
    """Commit dvc.lock and the scores to the branch of the dataset's runs, and push the data to the DVC remote.

    The commit; the same one when it is tried again. UserError if git or DVC refuses, TemporaryError if it may pass.
    """
    root = workspace.root
    found = [str(path.relative_to(root)) for pattern in RECORDED for path in sorted(root.glob(pattern))]
    _git(root, "add", "--force", "--", *found)
    if _git(root, "log", "-1", "--format=%B") != message:
        _git(root, *_WHO, "commit", "--quiet", "--allow-empty", "--message", message)
    _git(root, "push", "--quiet", "origin", f"HEAD:refs/heads/{workspace.branch}")
    where = remote(root)
    if where is not None and not Path(where).is_relative_to(root):
        dvc(root, "push", "--quiet")
    return _git(root, "rev-parse", "HEAD")


def recover(root: Path) -> None:
    """Take away the locks that git and DVC left in a workspace when they were killed. Its own lock must be held: then
    no process of a run is left there, and a person's is looked for. TemporaryError if there is one."""
    if (pid := at_work(root)) is not None:
        raise TemporaryError(f"{root}: process {pid} works there with git or DVC; this run needs it for itself")
    tmp = root / ".dvc" / "tmp"
    # DVC's rwlock names pids, which may be other processes by now; hardlink_lock's files never expire.
    stale = [*(root / ".git").rglob("*.lock"), *(tmp / name for name in ("lock", "rwlock", "rwlock.lock"))]
    for path in stale:
        path.unlink(missing_ok=True)


def at_work(root: Path) -> int | None:
    """The id of a process of git or DVC that works in a folder; None if there is none."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            tool = any(Path(word).name in ("git", "dvc") for word in words[:3])  # python -m dvc, python /bin/dvc
            if tool and Path(process.cwd()).is_relative_to(root):
                return process.pid
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return None


def repository() -> tuple[str, Path | None]:
    """Its URL, and its folder where it is one of this machine."""
    url = os.environ.get(REPOSITORY) or str(Path(__file__).absolute().parent.parent)
    folder = Path(url.removeprefix("file://"))
    return url, folder.absolute() if folder.is_dir() else None


def _home(local: Path | None) -> Path:
    if given := os.environ.get(WORKSPACES):
        return Path(given).absolute()
    if local is None:
        raise UserError(f"{WORKSPACES} is not set: name a folder for the runs' clones; all Ray nodes must see it")
    return local / ".services" / "workspaces"


def _lock(path: Path, wait: Callable[[], None]) -> int:
    """A descriptor that holds the file's lock. What inherits it holds the lock, too, until it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    told = True
                    wait()
                time.sleep(1)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _git(root: Path, *words: str) -> str:
    """What git prints. UserError if it fails; TemporaryError if it had to do with another machine."""
    # Not in the background: git's housekeeping would hold locks in a workspace that the next run takes for free.
    command = ["git", "-c", "gc.autoDetach=false", "-c", "maintenance.autoDetach=false", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        kind = TemporaryError if words[0] in _REMOTE and repository()[1] is None else UserError
        raise kind(f"{root}: git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _clone(url: str, root: Path) -> None:
    if not root.exists():
        half = root.with_name(f"{root.name}.new")
        shutil.rmtree(half, ignore_errors=True)
        _git(root.parent, "clone", "--quiet", "--no-checkout", url, str(half))
        half.rename(root)


def _check_out(root: Path, revision: str | None, url: str) -> str:
    """Bring the clone to `revision`, a branch, a tag or a commit; what git ignores (build/, runs/) stays."""
    _git(root, "remote", "set-url", "origin", url)
    _git(root, "fetch", "--quiet", "--prune", "--tags", "--force", "origin", "+refs/heads/*:refs/remotes/origin/*")
    if revision is None:
        _git(root, "fetch", "--quiet", "origin", "HEAD")
        commit = _git(root, "rev-parse", "FETCH_HEAD")
    else:
        commit = _resolve(root, revision)
    _git(root, "checkout", "--quiet", "--force", "--detach", commit)
    _git(root, "clean", "--quiet", "-d", "--force")
    return commit


def _resolve(root: Path, revision: str) -> str:
    names = (f"refs/remotes/origin/{revision}", f"refs/tags/{revision}", revision)
    commit = next((found for name in names if (found := _commit(root, name))), None)
    if commit is None:
        raise UserError(f"revision {revision!r}: the repository has no such branch, tag or commit")
    return commit


def _commit(root: Path, name: str) -> str | None:
    """The commit that a name stands for in the clone; None where it knows no such name."""
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except UserError:
        return None


def _params(root: Path, local: Path | None, dataset: str, overrides: Mapping[str, Any]) -> tuple[str, Params, Card]:
    """params.yaml with the dataset and the overrides in it, its comments as they were; and checked, with the card."""
    path = root / PARAMS
    load_yaml(path)  # tells what is wrong with it
    keeping = YAML()  # of the comments
    keeping.width = 4096  # no line is folded
    keeping.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    content = keeping.load(path.read_text())
    if dataset != content.get("dataset"):
        content["dataset"], content["raw"] = dataset, f"data/{dataset}/raw"
    for key, value in _leaves(overrides):
        if key == "dataset":
            raise UserError("overrides: the dataset is a parameter of its own")
        _set(content, key.split("."), value)
    params = parse(Params, yaml.safe_load(_dumped(keeping, content)), Path("params.yaml with the run's overrides"))
    card, raw = load_card(params.dataset, root / "data"), Path(params.raw)
    if local is not None and not (raw.is_absolute() or card.toyscapes or raw_pointer(root / raw).exists()):
        content["raw"] = str(local / raw)  # read where it is
        params = params.model_copy(update={"raw": content["raw"]})
    return _dumped(keeping, content), params, card


def _dumped(keeping: YAML, content: Any) -> str:
    text = io.StringIO()
    keeping.dump(content, text)
    return text.getvalue()


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value): {"train": {"images": 600}} and {"train.images": 600} are the same."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(content: Any, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], 1):
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, Mapping):
            raise UserError(
                f"overrides: {'.'.join(keys)}: {'.'.join(keys[:depth])} in params.yaml has no keys below it"
            )
    content[keys[-1]] = value


def _share(root: Path, local: Path | None, home: Path) -> None:
    """DVC's settings of this clone alone: the cache of all workspaces, and remotes that are folders of this machine."""
    mine = root / ".dvc" / "config.local"
    if mine.exists():
        return
    ini = configparser.ConfigParser(interpolation=None)
    theirs: dict[str, str] = {}
    if local is not None:
        theirs = settings(local)
        ini.read(local / ".dvc" / "config.local")  # keys of the remote
    cache = theirs.get("cache.dir", str(local / ".dvc" / "cache" if local else home / "cache"))
    ini.read_dict({"cache": {"dir": cache}})
    for key, value in theirs.items():
        if key.startswith("remote.") and key.endswith(".url") and Path(value).is_absolute():
            ini.read_dict({f"'remote \"{key[7:-4]}\"'": {"url": value}})
    part = mine.with_suffix(".part")  # a file that a kill has cut off would stay
    with part.open("w") as file:
        ini.write(file)
    part.rename(mine)


def _begin(workspace: Workspace, run: str) -> None:
    """A commit with this run's params.yaml, on top of the run before it and of the commit that was asked for."""
    root = workspace.root
    _git(root, "add", "--", str(PARAMS))
    before = _commit(root, f"refs/remotes/origin/{workspace.branch}")
    parents = [word for parent in (before, workspace.commit) if parent for word in ("-p", parent)]
    message = f"{run}: {workspace.dataset} at {workspace.commit[:12]}"
    made = _git(root, *_WHO, "commit-tree", _git(root, "write-tree"), *parents, "-m", message)
    _git(root, "push", "--quiet", "origin", f"{made}:refs/heads/{workspace.branch}")
    _git(root, "checkout", "--quiet", "--detach", made)

"""The prepared data on a node's own disk: fetched once a node from the DVC remote.

`publish` runs where the pipeline does, `fetch` on every node that trains. DVC does the transfer.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpgan.data.prepare import data_hash
from dpgan.data.versions import dvc
from dpgan.errors import UserError
from dpgan.settings import load_yaml

PREPARED = "prepared"


@dataclass(frozen=True)
class Published:
    """Prepared data in the DVC remote, and all that a node needs to fetch it."""

    digest: str  # DVC's hash of the folder
    size: int  # bytes
    data_hash: str  # of the pixels, as `prepare` took it
    config: str  # DVC's configuration, with the remote and its credentials


def publish(root: Path) -> Published:
    """Push build/prepared, as dvc.lock knows it, to the project's default DVC remote; what is there is not sent again.

    UserError where there is no remote, or it does not take the data.
    """
    lock = root / "dvc.lock"
    stages = load_yaml(lock)["stages"] if lock.exists() else {}
    if "prepare" not in stages:
        raise UserError(f"{lock} knows no prepared data to send to the nodes (run.data_cache); run `dvc repro prepare`")
    out = stages["prepare"]["outs"][0]
    settings = dict(line.split("=", 1) for line in dvc(root, "config", "--list").splitlines() if "=" in line)
    remote = settings.get("core.remote")
    if remote is None:
        raise UserError(
            "params.yaml: run.data_cache fetches the data from the DVC remote, and none is set: "
            "dvc remote add --default storage s3://BUCKET/FOLDER (or a folder that all nodes see)"
        )
    dvc(root, "push", "prepare")
    lines = ["[core]", "    no_scm = true", f"    remote = {remote}", "    analytics = false",
             "[cache]", "    type = hardlink,copy", f"['remote \"{remote}\"']"]  # fmt: skip
    prefix = f"remote.{remote}."
    lines += [f"    {key.removeprefix(prefix)} = {value}" for key, value in settings.items() if key.startswith(prefix)]
    content = data_hash(root / "build/prepared")
    return Published(out["md5"], out["size"], content, "\n".join(lines) + "\n")


def cache_folder(cache: str) -> Path:
    """`run.data_cache` on this node: `~` and environment variables filled in; UserError where one is not set."""
    filled = os.path.expandvars(cache)
    unset = re.search(r"\$\{?\w+\}?", filled)
    if unset:
        raise UserError(f"params.yaml: run.data_cache {cache}: {unset[0]} is not set on node {os.uname().nodename}")
    return Path(filled).expanduser().absolute()


def fetch(data: Published, cache: str, tell: Callable[[str], None]) -> Path:
    """The prepared data in this node's cache: fetched by the first who asks, while the others wait.

    What was interrupted goes on. UserError where the disk is too small or the remote does not give the data.
    """
    folder = cache_folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"params.yaml: run.data_cache {folder} on node {os.uname().nodename}: {error.strerror}"
        ) from None
    name = data.digest.removesuffix(".dir")
    ready, part = folder / name, folder / f".{name}.part"
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return ready
        free = shutil.disk_usage(folder).free
        if free < data.size:
            raise UserError(f"{folder}: the data needs {data.size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        tell(f"node {os.uname().nodename} fetches {data.size / 1e9:.2f} GB into {ready}")
        (part / ".dvc").mkdir(parents=True, exist_ok=True)
        config = part / ".dvc/config"
        config.touch(mode=0o600)
        config.write_text(data.config)
        (part / f"{PREPARED}.dvc").write_text(f"outs:\n- md5: {data.digest}\n  hash: md5\n  path: {PREPARED}\n")
        dvc(part, "pull", "--force")
        if data_hash(part / PREPARED) != data.data_hash:
            raise UserError("build/prepared is not what dvc.lock says of it; run `dvc repro prepare` again")
        (part / PREPARED).rename(ready)
        shutil.rmtree(part)  # DVC's own copy: a second name of the same files
    return ready

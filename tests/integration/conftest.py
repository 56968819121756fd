"""A clone of the project whose dataset, networks and judge are tiny: the real pipeline in a minute or two."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chaos.lab import make_project
from chaos.prefect_client import PrefectClient

PARAMS = """
dataset: toyscapes
raw: data/toyscapes/raw
seed: 0
judge: {images: 64, batch: 8}
train: {images: 40, batch: 4, generator_width: 2, pyramid_width: 4, discriminator_width: 2, noise_channels: 4,
  holdout: 8, evaluate_images: 20, losses: {perceptual: 1.0}}
run: {workers: 2, device: cpu, checkpoint_images: 4, log_images: 4}
evaluate: {noise_seed: 0}
gate: {approval: false}
"""


class Project:
    """A clone, and how its user works in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {
            k: v
            for k, v in os.environ.items()
            if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS") and not k.startswith(("DPGAN_", "PREFECT_"))
        }
        self.env |= {"PATH": paths, "PYTHONPATH": str(root), "DVC_GLOBAL_CONFIG_DIR": str(root / ".dvc-global")}

    def run(self, *command: str, code: int = 0) -> str:
        """The output of a command that must end with `code`."""
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False, timeout=600
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{output}"
        return output

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in a process group of its own, its output in a pipe."""
        return subprocess.Popen(
            command, cwd=self.root, env=self.env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def commit(self, message: str) -> None:
        for command in (["add", "-A"], ["commit", "-qm", message]):
            self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text, (name, old)
        path.write_text(text.replace(old, new))


class Services(Project):
    """A project, and its services."""

    def services(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / ".services/services.json").read_text())
        return found

    def make(self, *words: str, code: int = 0) -> str:
        """`infra/services.py`, with SIGINT ignored as under nohup."""
        ignoring = ("bash", "-c", "trap '' INT; exec \"$@\"", "-")
        return self.run(*ignoring, sys.executable, "infra/services.py", *words, code=code)

    @property
    def prefect(self) -> PrefectClient:
        login = (self.root / ".services/prefect-login").read_text().strip()
        return PrefectClient(f"{self.services()['prefect']['url']}/api", login)

    def workspace(self, dataset: str) -> Path:
        return self.root / ".services/workspaces" / dataset

    def processes(self, dataset: str) -> list[str]:
        """Command lines of what works in a dataset's workspace."""
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in listed if str(self.workspace(dataset)) in line]

    def checkpoint(self, dataset: str) -> Path:
        """The newest checkpoint of the training that goes on, as soon as there is one."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if found := sorted(self.workspace(dataset).glob("runs/*/checkpoints/images_*")):
                return found[-1]
            time.sleep(0.2)
        raise AssertionError("no checkpoint")

    def mlflow_runs(self) -> list[tuple[str, str]]:
        with sqlite3.connect(self.root / "mlruns/mlflow.db") as database:
            return database.execute("select run_uuid, status from runs order by start_time").fetchall()


def make_clone(root: Path) -> Project:
    """A git clone of the working tree, committed, with a tiny dataset."""
    return Project(make_project(root, PARAMS).root)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_clone(tmp_path_factory.mktemp("clone"))

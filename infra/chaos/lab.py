"""A tiny project, copies of it to break, and the processes that work in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from processes import ask

from chaos.faults import PromiseError, expect

SOURCE = Path(__file__).absolute().parent.parent.parent
PATIENCE_S = 600  # for what a command does, on a busy machine
PARAMS = """\
dataset: toyscapes
raw: data/toyscapes/raw
seed: 0
judge: {images: 64, batch: 8}
train: {images: 48, batch: 4, generator_width: 2, pyramid_width: 4, discriminator_width: 2, noise_channels: 4,
  holdout: 8, evaluate_images: 24, losses: {perceptual: 1.0}}
run: {workers: 2, device: cpu, checkpoint_images: 8, log_images: 4}
evaluate: {noise_seed: 0}
gate: {approval: false}
"""
_WHO = ("-c", "user.name=chaos", "-c", "user.email=chaos@localhost")


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Waits; `PromiseError` if it takes longer than `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not true():
        expect(time.monotonic() < deadline, f"{what}: not within {patience_s:g} s")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether a server answers at `url`, and without an error."""
    try:
        ask(url)
    except OSError:
        return False
    return True


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started, whatever their process groups."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, as a machine that loses its power."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


@dataclass(frozen=True)
class Running:
    """A command at work, in a session of its own, its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, code: int | None = 0, patience_s: float = PATIENCE_S) -> str:
        """The output of a command that ends with `code` (None: whatever it is)."""
        try:
            ended = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            kill(tree(self.process.pid))
            raise PromiseError(f"not done after {patience_s:g} s: {self.output[-2000:]}") from None
        if code is not None:
            expect(ended == code, f"it ended with code {ended} instead of {code}: {self.output[-3000:]}")
            expect("Traceback" not in self.output, f"a user sees a traceback: {self.output[-3000:]}")
        return self.output

    def until(self, true: Callable[[], object], what: str) -> None:
        """Waits while the command is at work."""

        def check() -> bool:
            if true():
                return True
            expect(self.process.poll() is None, f"{what}: the command ended before: {self.output[-3000:]}")
            return False

        until(check, what)

    def workers(self) -> list[psutil.Process]:
        """The training workers below it."""
        found = []
        for process in tree(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found


class Project:
    """A clone of this project, and how its user works in it."""

    def __init__(self, root: Path, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        foreign = ("DPGAN_", "PREFECT_")
        own = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}
        self.env = {k: v for k, v in os.environ.items() if k not in own and not k.startswith(foreign)}
        self.env |= {"PATH": paths, "PYTHONPATH": str(root), "DVC_GLOBAL_CONFIG_DIR": str(root / ".dvc-global")}
        self.env |= {"OMP_NUM_THREADS": "1", **(env or {})}
        self.logs = 0

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> Running:
        self.logs += 1
        log = self.root.with_name(f"{self.root.name}.{self.logs}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self.root, env={**self.env, **(env or {})}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Running(process, log)

    def run(self, *command: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> str:
        """The output of a command that must end with `code`."""
        return self.start(*command, env=env).wait(code)

    def git(self, *words: str) -> str:
        return self.run("git", *_WHO, *words).strip()

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        if old not in text:
            raise ValueError(f"{path}: no {old!r}")
        path.write_text(text.replace(old, new))

    @property
    def runs(self) -> list[tuple[str, str]]:
        """(id, status) of every MLflow run, the oldest first."""
        return self.rows("select run_uuid, status from runs order by start_time")

    def rows(self, query: str) -> list[Any]:
        """What the MLflow database of the project answers."""
        with sqlite3.connect(self.root / "mlruns/mlflow.db", timeout=60) as database:
            return database.execute(query).fetchall()

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Complete checkpoints of interrupted trainings, by images seen."""
        found = sorted(self.root.glob("runs/*/checkpoints/images_*/manifest.json"))
        return {int(path.parent.name.removeprefix("images_")): path.parent for path in found}

    @property
    def newest(self) -> int:
        return max(self.checkpoints, default=0)

    @property
    def logged(self) -> int:
        """Images at the newest losses that reached MLflow."""
        return max((step for (step,) in self.rows("select step from metrics where key = 'loss/G_total'")), default=0)

    @property
    def lost(self) -> int:
        """Images that were trained since the newest checkpoint, as far as MLflow knows of them."""
        return max(self.logged - self.newest, 0)

    @property
    def weights(self) -> dict[str, bytes]:
        """What a finished training left."""
        return {name: (self.root / f"build/train/{name}.safetensors").read_bytes() for name in ("last", "best")}

    def folder(self, name: str) -> Path:
        """A folder next to the project, made if it is missing."""
        path = self.root.with_name(f"{self.root.name}.{name}")
        path.mkdir(exist_ok=True)
        return path

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / name).read_text())
        return content

    def train(self, command: tuple[str, ...] = ("dpgan", "train"), env: Mapping[str, str] | None = None) -> Running:
        """A training that has written a checkpoint since it began."""
        before = self.newest
        training = self.start(*command, env=env)
        training.until(lambda: self.newest > before, "the next checkpoint")
        return training

    def killed(self) -> int:
        """A training that loses its machine behind a checkpoint: the images that it loses."""
        training = self.train()
        kill(tree(training.process.pid))
        return self.lost

    def processes(self) -> list[str]:
        """Command lines of what works for this project."""
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in listed if str(self.root) in line]


def make_project(root: Path, params: str = PARAMS, pairs: tuple[int, int] = (32, 8)) -> Project:
    """A git clone of the working tree with a tiny dataset of 32x64 pixels."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=SOURCE, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if (SOURCE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, root / name)
    project = Project(root)
    (root / "params.yaml").write_text(params)
    card = "data/toyscapes/dataset.yaml"
    project.edit(card, "size: [64, 128]\npreset", "size: [32, 64]\npreset")
    small = f"{{train: {pairs[0]}, val: {pairs[1]}, size: [32, 64], seed: 0}}"
    project.edit(card, "{train: 2000, val: 400, size: [64, 128], seed: 0}", small)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-qm", "clone")
    return project


class Lab:
    """One project whose data and judge are made, and copies of it, below a folder that goes in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[Project] = []
        self.closing: list[Callable[[], object]] = []

    @cached_property
    def prepared(self) -> Project:
        """Its stages are done up to the judge."""
        project = make_project(self.folder / "project")
        self.also(project)
        project.run("dvc", "repro", "judge")
        project.git("add", "-A")
        project.git("commit", "-qm", "data and judge")
        return project

    @cached_property
    def finished(self) -> Project:
        """The whole pipeline has run in it, uninterrupted."""
        project = self.copy(self.prepared, "finished")
        self.also(project)
        project.run("dvc", "repro")
        project.git("add", "-A")
        project.git("commit", "-qm", "a whole run")
        return project

    @property
    def calm(self) -> dict[str, bytes]:
        """The weights of an uninterrupted training."""
        return self.finished.weights

    @contextmanager
    def project(self, name: str, of: Project | None = None) -> Iterator[Project]:
        """A copy to break; what still works in it in the end is killed."""
        copy = self.copy(of or self.prepared, name)
        try:
            yield copy
        finally:
            self.end(copy)

    def copy(self, project: Project, name: str) -> Project:
        root = self.folder / name
        shutil.copytree(project.root, root, symlinks=True)
        return Project(root)

    def also(self, project: Project) -> None:
        """Ends with the lab, too."""
        self.kept.append(project)

    def end(self, project: Project) -> None:
        """Kills what works in a project, and removes it."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(project.root) in process.environ().get("PYTHONPATH", "").split(os.pathsep):
                    kill(tree(process.pid))
        shutil.rmtree(project.root, ignore_errors=True)

    def close(self) -> None:
        """Ends what was started for all."""
        for end in self.closing:
            end()
        for project in self.kept:
            self.end(project)


def same_weights(project: Project, lab: Lab) -> None:
    """`PromiseError` unless a training came to the weights of the uninterrupted one, bit for bit."""
    expect(project.weights == lab.calm, "the weights differ from those of the uninterrupted training")


def interrupt(running: Running, number: signal.Signals) -> None:
    """A signal for the command's process group, as a terminal sends it."""
    os.killpg(running.process.pid, number)

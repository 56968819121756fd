"""Two Ray nodes on this machine train together: a worker and a disk each; under DeepSpeed, for it is not DDP."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from dvc_repo import make_repo, with_prepared
from test_training import Records
from tiny_job import CPU, job

from dpgan.training.loop import train

SETTINGS = {"images": 10, "batch": 5}  # shares of 2 and 3
HOW = {"placement": "STRICT_SPREAD", "strategy": "deepspeed", "zero_stage": 1, "data_cache": "$NODE_DISK/dpgan"}
DRIVER = f"""
import sys
from dataclasses import replace
from pathlib import Path
from test_training import Records
from tiny_job import job
from dpgan.data.staging import publish
from dpgan.training.launch import launch
project, folder = map(Path, sys.argv[1:])
task = job(Path("/not/on/the/nodes"), folder, workers=2, **{SETTINGS})
task = replace(task, run=task.run.model_copy(update={HOW}), published=publish(project))
launch(task, Records(folder / "log"), lambda *_: None)
"""
ENDLESS = """
import sys
from dataclasses import replace
from pathlib import Path
from test_training import Records
from tiny_job import job
from dpgan.errors import UserError
from dpgan.training.launch import launch
prepared, folder = map(Path, sys.argv[1:])
task = job(prepared, folder, workers=2, images=400_000, evaluate_images=400_000)
how = {"placement": "STRICT_SPREAD", "start_timeout_s": 10, "checkpoint_images": 20, "log_images": 20}
task = replace(task, run=task.run.model_copy(update=how))
try:
    launch(task, Records(folder / "log"), lambda *_: None)
except UserError as error:
    print("ended:", error, flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Nodes:
    """A head and a second node, each a `ray start` of its own, and the environment of those who join them."""

    def __init__(self, folder: Path) -> None:
        self.address, self.folder = f"127.0.0.1:{free_port()}", folder
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false", "--num-cpus=2",
                f"--temp-dir={folder}"]  # fmt: skip
        second = [f"--address={self.address}", "--num-cpus=1"]
        self.commands = {"head": head, "second": second}
        self.processes: list[subprocess.Popen[bytes]] = []

    def disk(self, name: str) -> Path:
        return self.folder / f"disk-of-{name}"

    def start(self) -> None:
        for name, arguments in self.commands.items():
            self.processes.append(self._start(name, arguments))
            self._wait_for(len(self.processes))

    def _start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        env = self.env | {"NODE_DISK": str(self.disk(name))}
        command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([*command, *arguments], env=env, stdout=log, stderr=subprocess.STDOUT)

    def _wait_for(self, nodes: int) -> None:
        ask = f"import ray; ray.init({self.address!r}, log_to_driver=False); print(len(ray.nodes()))"
        deadline, seen = time.monotonic() + 120, ""
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            done = subprocess.run(
                [sys.executable, "-c", ask], env=self.env, capture_output=True, text=True, check=False
            )
            seen = done.stdout + done.stderr
            if done.stdout.strip().endswith(str(nodes)):
                return
            time.sleep(1)
        raise TimeoutError(f"no {nodes} Ray nodes: {seen[-2000:]}")

    def with_a_worker(self) -> set[str]:
        """The nodes below which a training worker runs now."""
        found = set()
        for name, process in zip(self.commands, self.processes, strict=True):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        found.add(name)
        return found

    def lose(self, name: str) -> None:
        """Kill a node with all that runs on it."""
        self._kill(self.processes[list(self.commands).index(name)])

    def stop(self) -> None:
        """By their own process ids: `ray stop` would end every Ray on this machine, and SIGTERM takes 30 s."""
        for process in self.processes:
            self._kill(process)

    @staticmethod
    def _kill(started: subprocess.Popen[bytes]) -> None:
        if started.poll() is None:
            node = psutil.Process(started.pid)
            for process in [node, *node.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        started.wait(timeout=60)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: Ray's sockets lie in it
        nodes = Nodes(Path(folder))
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.stop()


def test_they_train_what_one_worker_trains(tiny: Path, tmp_path: Path, nodes: Nodes) -> None:
    seen: set[str] = set()
    project = with_prepared(make_repo(tmp_path / "project", tmp_path / "remote"), tiny)
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(project), str(tmp_path)], env=nodes.env | {"RAY_ADDRESS": nodes.address},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as driver:  # fmt: skip
        deadline = time.monotonic() + 300
        while driver.poll() is None and time.monotonic() < deadline:
            seen |= nodes.with_a_worker()
            time.sleep(0.2)
        driver.kill()
        output, _ = driver.communicate()
    assert driver.returncode == 0, output
    assert seen == {"head", "second"}
    for name in nodes.commands:
        (data,) = (path for path in nodes.disk(name).glob("dpgan/*") if not path.name.startswith("."))
        assert (data / "meta.json").read_bytes() == (tiny / "meta.json").read_bytes()
    assert output.count("fetches") == 2, output

    alone = tmp_path / "alone"
    train(job(tiny, alone, workers=1, **SETTINGS), CPU, Records(alone / "log"), lambda *_: None)
    ours, expected = (Records(path / "log").read() for path in (tmp_path, alone))
    assert [row["step"] for row in ours] == [row["step"] for row in expected]
    for together, single in zip(ours, expected, strict=True):
        for name in (n for n in single if n.startswith("loss/")):
            assert together[name] == pytest.approx(single[name], rel=2e-3, abs=1e-5), (single["step"], name)


def test_a_node_that_stays_away_ends_in_a_sentence(tiny: Path, tmp_path: Path, nodes: Nodes) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tiny), str(tmp_path)], env=nodes.env | {"RAY_ADDRESS": nodes.address},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as driver:  # fmt: skip
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("checkpoints/images_*")) and time.monotonic() < deadline:
            assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
            time.sleep(0.2)
        nodes.lose("second")
        gone = time.monotonic()
        try:
            output, _ = driver.communicate(timeout=150)
        finally:
            driver.kill()
    seconds = time.monotonic() - gone
    words = "params.yaml: run.placement STRICT_SPREAD puts each of run.workers 2 on a node of its own, Ray has 1"
    assert f"a node is lost; waiting up to 10 s for one: {words}" in output, (seconds, output)
    assert f"ended: a node was lost, and none came back within run.start_timeout_s 10: {words}" in output, output
    assert "The same command resumes from the last checkpoint" in output
    assert list(tmp_path.glob("checkpoints/images_*/manifest.json"))

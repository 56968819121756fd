"""Services as processes of this machine: started one by one, waited for, ended by process and never by name."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from dpgan.errors import UserError

HOST = "127.0.0.1"
START_S = 300  # until a service must answer, on a busy machine


def free_port() -> int:
    """A TCP port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def taken(port: int) -> bool:
    """Whether something listens on a TCP port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


def ask(url: str) -> None:
    """Raises OSError where nothing answers at `url`, or with an error."""
    requests.get(url, timeout=10).raise_for_status()


class Processes:
    """Services and commands with their working folder, and their logs, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, command: list[str], env: Mapping[str, str], stdin: str = "", **how: Any) -> str:
        """The output of a command; UserError where it fails. `how`: of subprocess.run."""
        done = subprocess.run(
            command, env=dict(env), input=stdin, capture_output=True, text=True, check=False,
            **{"cwd": self.folder} | how,
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr}")
        return str(done.stdout)

    def start(
        self, name: str, command: list[str], env: Mapping[str, str], answers: Callable[[], object], **how: Any
    ) -> None:
        """Start a service and wait until `answers` raises neither UserError nor OSError.

        UserError with its log where it ends, or is silent for START_S. `how`: of subprocess.Popen.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=dict(env), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **how
            )
        self.running[name] = process
        deadline, seen = time.monotonic() + START_S, "it ended"
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answers()
            except (UserError, OSError) as error:  # requests' errors are OSErrors
                seen = str(error)
                time.sleep(0.5)
            else:
                print(f"{name} is up", flush=True)
                return
        raise UserError(f"{name} does not answer: {seen}\n{log.read_text(errors='replace')[-4000:]}")

    def stop(self) -> None:
        """End what was started, the last first, each with its children."""
        while self.running:
            name, process = self.running.popitem()
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                tree = [root, *root.children(recursive=True)]
                if not name.startswith("ray"):  # `ray start` takes half a minute to end what is killed here
                    # PostgreSQL waits for its clients at SIGTERM, not at SIGINT.
                    process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
                    psutil.wait_procs([root], timeout=30)
                for one in tree:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait()

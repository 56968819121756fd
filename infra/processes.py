"""Services as processes of this machine: started one by one, waited for, ended by process and never by name."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import psutil
import requests

from dpgan.errors import UserError

HOST = "127.0.0.1"
LOG_BYTES = 16 * 1024**2  # of a service's log, at its next start
START_S = 300  # until a service must answer, on a busy machine
STARTED_BY = "DPGAN_STARTED_BY"  # in the environment of a service, and so of all that it starts


def hear_sigint() -> None:
    """For a service before it runs (`preexec_fn`): Prefect ends its worker by SIGINT.

    What a script starts in the background ignores it, and so do its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def open_log(path: Path) -> BinaryIO:
    """A service's log, to be written on: what an earlier start left may say why it ended. One that has grown beyond
    `LOG_BYTES` becomes `<name>.1`, in the place of the one before it."""
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    file = path.open("ab")
    file.write(f"--- started {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
    file.flush()
    return file


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


def next_free(port: int, besides: Collection[int] = ()) -> int:
    """The first port from `port` on that nothing listens on, and that is none of `besides`."""
    while port in besides or taken(port):
        port += 1
    return port


def ask(url: str, login: str = ":") -> None:
    """Raises OSError if nothing answers at `url`, or with an error. login: `name:password`."""
    name, _, password = login.partition(":")
    requests.get(url, timeout=10, auth=(name, password) if name else None).raise_for_status()


@dataclass(frozen=True)
class Service:
    """A process that we started. Its id alone may be another process's by now: boot and start time tell."""

    pid: int
    boot: str
    ticks: int
    url: str

    @staticmethod
    def of(pid: int, url: str) -> Service:
        return Service(pid, _boot(), _ticks(pid) or 0, url)

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and self.ticks == _ticks(self.pid)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where there is none, or only its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def started_by(mark: str) -> set[psutil.Process]:
    """What has `mark` in its environment, whoever its parent is by now, and its children (Ray's hide theirs)."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(STARTED_BY) == mark:
                found |= {process, *process.children(recursive=True)}
    return found


def mark_of(service: Service) -> Path | None:
    """The mark that a service was started with; None if it is gone."""
    if not service.alive:
        return None
    try:
        mark = psutil.Process(service.pid).environ().get(STARTED_BY)
    except psutil.Error:
        return None
    return None if mark is None else Path(mark)


def end(name: str, mark: str, service: Service | None, patience_s: float) -> bool:
    """End a service, what it started, and what outlived an earlier one of the same mark; whether there was anything.

    SIGTERM goes to those whose parent is not among them: they pass it on. What is left after `patience_s` is killed.
    """
    tree = started_by(mark)
    if service is not None and service.alive:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(service.pid)
            tree |= {root, *root.children(recursive=True)}
    if not tree:
        return False
    numbers = {process.pid for process in tree}
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in numbers:
                process.terminate()
    began = told = time.monotonic()
    while left := set(psutil.wait_procs(tree, timeout=0.5)[1]) | started_by(mark):
        tree, now = left, time.monotonic()
        if now - began > patience_s:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        elif now - told > 5:
            told = now
            print(f"{name:<8} waits for {len(left)} processes to end: {min(p.pid for p in left)}", flush=True)
    print(f"{name:<8} ended", flush=True)
    return True


def run(command: list[str], env: Mapping[str, str], stdin: str = "", **how: Any) -> str:
    """The output of a command; UserError where it fails. `how`: of subprocess.run."""
    done = subprocess.run(command, env=dict(env), input=stdin, capture_output=True, text=True, check=False, **how)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr}")
    return str(done.stdout)


def wait_until(
    name: str,
    process: subprocess.Popen[bytes],
    log: Path,
    answers: Callable[[], object],
    waits: Callable[[], object] = lambda: None,
) -> None:
    """Until `answers` raises neither UserError nor OSError; `waits` is called before each new try.

    UserError with the end of its log where the process ends, or is silent for START_S.
    """
    deadline, seen = time.monotonic() + START_S, "it ended"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            answers()
        except (UserError, OSError) as error:  # requests' errors are OSErrors
            seen = str(error)
            time.sleep(0.5)
            waits()
        else:
            return
    raise UserError(f"{name} does not answer: {seen}; the end of {log}:\n{log.read_text(errors='replace')[-4000:]}")


class Processes:
    """Services and commands with their working folder, and their logs, in `folder`; they end with the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, command: list[str], env: Mapping[str, str], stdin: str = "", **how: Any) -> str:
        """`run`, in the folder."""
        return run(command, env, stdin, **{"cwd": self.folder} | how)

    def start(
        self, name: str, command: list[str], env: Mapping[str, str], answers: Callable[[], object], **how: Any
    ) -> None:
        """Start a service and wait until `answers` raises neither UserError nor OSError.

        UserError with its log where it ends, or is silent for START_S. `how`: of subprocess.Popen.
        """
        log = self.folder / f"{name}.log"
        with open_log(log) as file:
            process = subprocess.Popen(
                command, env=dict(env), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                preexec_fn=hear_sigint, **how,
            )  # fmt: skip
        self.running[name] = process
        wait_until(name, process, log, answers)
        print(f"{name} is up", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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

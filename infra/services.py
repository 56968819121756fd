"""All services on one machine, without containers: MLflow, a Prefect server, a work pool and its worker.

    python infra/services.py up [--prefect-port N] [--mlflow-port N]      # or `make up`
    python infra/services.py down

They listen on loopback and outlive the terminal. State lies in .services/; prefect.toml tells Prefect's client where
this project's server is. `down` ends what `up` started, by process and never by name.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import requests
from processes import HOST, START_S, ask, free_port, taken

from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.registry.tracking import open_store

INFRA = Path(__file__).absolute().parent
PROJECT = INFRA.parent
STATE = PROJECT / ".services"
RECORD, CLIENT = STATE / "services.json", PROJECT / "prefect.toml"
POOL = "dpgan"
PORTS = {"mlflow": 5000, "prefect": 4200}
WRITTEN = "# Written by `make up`, deleted by `make down`: Prefect's client finds the server of this project by it.\n"
STOP_S = 300  # for a training that is cut off, to write its checkpoint; then what is left is killed


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


def recorded() -> dict[str, Service]:
    """What `up` started, dead or alive."""
    if not RECORD.exists():
        return {}
    return {name: Service(**fields) for name, fields in json.loads(RECORD.read_text()).items()}


def _record(services: Mapping[str, Service]) -> None:
    new = RECORD.with_suffix(".new")
    new.write_text(json.dumps({name: asdict(service) for name, service in services.items()}, indent=1))
    new.replace(RECORD)


@contextmanager
def _alone() -> Iterator[None]:
    """UserError where another `make up` or `make down` is at work."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another `make up` or `make down` is at work; wait for it") from None
        yield


def up(ports: Mapping[str, int | None]) -> None:
    """Start what is not up, wait until it answers, deploy. UserError with a log's end where something does not."""
    before = recorded()
    services = {name: service for name, service in before.items() if service.alive}
    for name in services:
        print(f"{name:<8} is up already", flush=True)
    url = {
        name: services[name].url if name in services else _address(name, ports[name], before.get(name))
        for name in PORTS
    }
    if "worker" in services and any(name in before and before[name].url != url[name] for name in PORTS):
        raise UserError("the worker knows a server at a port that another process has taken: `make down`, `make up`")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # ours serves the project's own store
    store = open_store(PROJECT)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(STATE / "prefect"),
        "PREFECT_API_URL": f"{url['prefect']}/api",
        "MLFLOW_TRACKING_URI": url["mlflow"],
        "DPGAN_REPOSITORY": f"file://{PROJECT}",
        "DPGAN_WORKSPACES": str(STATE / "workspaces"),
    }

    def start(name: str, command: list[str], answers: Callable[[], object]) -> None:
        if name in services:
            return
        log = STATE / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, env=environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        services[name] = Service.of(process.pid, url.get(name, ""))
        _record(services)
        print(f"{name:<8} starts", end="", flush=True)
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < START_S:
            try:
                answers()
            except (UserError, OSError):  # requests' errors are OSErrors
                time.sleep(0.5)
                print(".", end="", flush=True)
            else:
                print(f" {time.monotonic() - began:.0f} s", flush=True)
                return
        print()
        raise UserError(f"{name} does not answer; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}")

    host, port = HOST, {name: address.rpartition(":")[2] for name, address in url.items()}
    start(
        "mlflow",
        ["mlflow", "server", "--backend-store-uri", store, "--no-serve-artifacts", "--default-artifact-root",
         (PROJECT / "mlruns" / "artifacts").as_uri(), "--host", host, "--port", port["mlflow"], "--workers", "1"],
        lambda: ask(f"{url['mlflow']}/health"),
    )  # fmt: skip
    start(
        "prefect", ["prefect", "server", "start", "--host", host, "--port", port["prefect"]],
        lambda: ask(f"{url['prefect']}/api/health"),
    )  # fmt: skip
    CLIENT.write_text(f'{WRITTEN}[api]\nurl = "{url["prefect"]}/api"\n\n[server]\nanalytics_enabled = false\n')
    print("deploys", flush=True)
    deploy(environment)
    now = datetime.now(UTC).isoformat()
    start("worker", ["prefect", "worker", "start", "--pool", POOL], lambda: _need_worker(url["prefect"], now))
    print(f"\nPrefect  {url['prefect']}\nMLflow   {url['mlflow']}\n")
    print(".venv/bin/prefect deployment run train-dpgan/toyscapes --watch")


def deploy(environment: Mapping[str, str]) -> None:
    """The work pool, the deployments of prefect.yaml, the automation for lost runs; safe to run again."""
    prefect = ["-m", "prefect", "--no-prompt"]
    for command in (
        [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"],
        [*prefect, "deploy", "--all", "--prefect-file", str(INFRA / "prefect.yaml")],
        [str(INFRA / "automations.py")],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, env=dict(environment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _address(name: str, asked: int | None, before: Service | None) -> str:
    """With the port that was asked for, that of the time before, the usual one, or one that is free."""
    if asked is not None and taken(asked):
        raise UserError(f"port {asked} of {HOST} is taken; choose another: make up {name.upper()}_PORT=N")
    wanted = asked or (int(before.url.rpartition(":")[2]) if before else PORTS[name])
    return f"http://{HOST}:{free_port() if taken(wanted) else wanted}"


def _need_worker(url: str, since: str) -> None:
    """UserError where no worker of the pool has been heard of since an ISO time."""
    workers: list[dict[str, Any]] = requests.post(f"{url}/api/work_pools/{POOL}/workers/filter", timeout=10).json()
    if not any((worker.get("last_heartbeat_time") or "") > since for worker in workers):
        raise UserError("no worker is online yet")


def down() -> None:
    """End the worker with the runs that it runs, which leave a checkpoint, then the servers."""
    services = recorded()
    for name in ("worker", "prefect", "mlflow"):
        if name in services and services[name].alive:
            _end(name, services[name].pid)
    if CLIENT.exists() and CLIENT.read_text().startswith(WRITTEN):
        CLIENT.unlink()
    RECORD.unlink(missing_ok=True)
    print("down; databases, logs and workspaces stay in .services/")


def _end(name: str, pid: int) -> None:
    """End a process and all that it started."""
    root = psutil.Process(pid)
    tree = [root, *root.children(recursive=True)]
    root.terminate()
    began = told = time.monotonic()
    while left := psutil.wait_procs(tree, timeout=0.5)[1]:
        now = time.monotonic()
        if now - began > STOP_S:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        elif now - told > 5:
            told = now
            print(f"{name:<8} waits for {len(left)} processes to end: {left[-1].pid}", flush=True)
    print(f"{name:<8} ended", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help=(up.__doc__ or "").split(".")[0])
    for name, port in PORTS.items():
        starting.add_argument(f"--{name}-port", type=int, help=f"default: {port}, or a free one")
    commands.add_parser("down", help=(down.__doc__ or "").split(".")[0])
    given = parser.parse_args()
    quiet_environment()
    try:
        with _alone():
            if given.command == "up":
                up({name: getattr(given, f"{name}_port") for name in PORTS})
            else:
                down()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

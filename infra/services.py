"""All services on one machine, without containers: MLflow, a Prefect server, a work pool and its worker.

    python infra/services.py up [--prefect-port N] [--mlflow-port N]      # or `make up`
    python infra/services.py down

They listen on loopback and outlive the terminal. State lies in .services/; prefect.toml names this project's server to
Prefect's client, and its login. `down` ends what `up` started, by process and never by name.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from processes import (
    HOST,
    STARTED_BY,
    Service,
    ask,
    end,
    hear_sigint,
    mark_of,
    next_free,
    open_log,
    run,
    started_by,
    taken,
    wait_until,
)

from dpgan.data.versions import use_private_cache
from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.registry.tracking import open_store

INFRA = Path(__file__).absolute().parent
PROJECT = INFRA.parent
STATE = PROJECT / ".services"
RECORD, CLIENT = STATE / "services.json", PROJECT / "prefect.toml"
LOGIN = STATE / "prefect-login"  # name:password; who may call Prefect's API may run code here
POOL = "dpgan"
PORTS = {"mlflow": 5000, "prefect": 4200}
WRITTEN = "# Written by `make up`, deleted by `make down`: Prefect's client finds the server of this project by it.\n"
STOP_S = 300  # for a training that is cut off, to write its checkpoint; then what is left is killed


def recorded() -> dict[str, Service]:
    """What `up` started, dead or alive."""
    if not RECORD.exists():
        return {}
    services = {name: Service(**fields) for name, fields in json.loads(RECORD.read_text()).items()}
    return {name: service for name, service in services.items() if not _of_another_project(service)}


def _of_another_project(service: Service) -> bool:
    """Whether it belongs to the project that this one is a copy of, with its record."""
    mark = mark_of(service)
    return mark is not None and mark.parent.exists() and not mark.parent.samefile(STATE)


def _record(services: Mapping[str, Service]) -> None:
    new = RECORD.with_suffix(".new")
    new.write_text(json.dumps({name: asdict(service) for name, service in services.items()}, indent=1))
    new.replace(RECORD)


def login() -> str:
    """Prefect's login, `name:password`, made at the first start. Without one every web page that the operator opens
    could call the API (its browser reaches loopback), and have it run code."""
    if not LOGIN.exists():
        _write_private(LOGIN, f"dpgan:{secrets.token_hex(24)}\n")
    return LOGIN.read_text().strip()


def _write_private(path: Path, text: str) -> None:
    """A file that only its owner can read, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


@contextmanager
def _alone() -> Iterator[None]:
    """UserError where another `make up` or `make down` is at work."""
    STATE.mkdir(exist_ok=True)
    STATE.chmod(0o700)
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
    if CLIENT.exists() and not CLIENT.read_text().startswith(WRITTEN):
        raise UserError(f"{CLIENT} is not ours, and Prefect's client would read it; move it away, then `make up` again")
    for name in services:
        print(f"{name:<8} is up already", flush=True)
    if "mlflow" not in services:  # MLflow's workers outlive it, and hold its port
        end("mlflow", _mark("mlflow"), None, patience_s=30)
    url = _urls(before, services, ports)
    store = open_store(PROJECT)
    use_private_cache(PROJECT)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(STATE / "prefect"),
        "PREFECT_API_URL": f"{url['prefect']}/api",
        "MLFLOW_TRACKING_URI": url["mlflow"],
        "DPGAN_REPOSITORY": f"file://{PROJECT}",
        "DPGAN_WORKSPACES": str(STATE / "workspaces"),
    }
    client = environment | {"PREFECT_API_AUTH_STRING": login()}
    own = ",".join(url["prefect"].replace(HOST, host) for host in (HOST, "localhost"))
    server = environment | {"PREFECT_SERVER_API_AUTH_STRING": login(), "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own}

    def start(name: str, command: list[str], env: Mapping[str, str], answers: Callable[[], object]) -> None:
        if name in services:
            return
        log = STATE / f"{name}.log"
        with open_log(log) as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, env={**env, STARTED_BY: _mark(name)},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, preexec_fn=hear_sigint,
            )  # fmt: skip
        services[name] = Service.of(process.pid, url.get(name, ""))
        _record(services)
        print(f"{name:<8} starts", end="", flush=True)
        began = time.monotonic()
        try:
            wait_until(name, process, log, answers, lambda: print(".", end="", flush=True))
        except UserError:
            print()
            raise
        print(f" {time.monotonic() - began:.0f} s", flush=True)

    host, port = HOST, {name: address.rpartition(":")[2] for name, address in url.items()}
    start(
        "mlflow",
        ["mlflow", "server", "--backend-store-uri", store, "--no-serve-artifacts", "--default-artifact-root",
         (PROJECT / "mlruns" / "artifacts").as_uri(), "--host", host, "--port", port["mlflow"], "--workers", "1"],
        environment, lambda: ask(f"{url['mlflow']}/health"),
    )  # fmt: skip
    start(
        "prefect", ["prefect", "server", "start", "--host", host, "--port", port["prefect"]], server,
        lambda: ask(f"{url['prefect']}/api/admin/version", login()),
    )  # fmt: skip
    _write_private(
        CLIENT,
        f'{WRITTEN}[api]\nurl = "{url["prefect"]}/api"\nauth_string = "{login()}"\n\n'
        "[server]\nanalytics_enabled = false\n",
    )
    print("deploys", flush=True)
    deploy(client)
    if "worker" not in services and not started_by(_mark("worker")):  # a worker's runs may outlive it
        _end_lost_runs(url["prefect"])
    now = datetime.now(UTC).isoformat()
    start("worker", ["flows.worker", "start", "--pool", POOL], client, lambda: _need_worker(url["prefect"], now))
    print(f"\nPrefect  {url['prefect']}, its login is in {LOGIN.relative_to(PROJECT)}\nMLflow   {url['mlflow']}\n")
    print(".venv/bin/prefect deployment run train-dpgan/toyscapes --watch")


def deploy(environment: Mapping[str, str]) -> None:
    """The work pool, the deployments of prefect.yaml, the automation for lost runs; safe to run again."""
    prefect = ["-m", "prefect", "--no-prompt"]
    for command in (
        [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"],
        [*prefect, "deploy", "--all", "--prefect-file", str(INFRA / "prefect.yaml")],
        [str(INFRA / "automations.py")],
    ):
        run([sys.executable, *command], environment, cwd=PROJECT)


def _mark(name: str) -> str:
    """What a service of this project, and all that it starts, has in its environment."""
    return str(STATE / name)


def _urls(
    before: Mapping[str, Service], services: Mapping[str, Service], ports: Mapping[str, int | None]
) -> dict[str, str]:
    """Where the servers are, or will be: at the port that was asked for, where they were, or at the next free one."""
    url = {name: services[name].url for name in PORTS if name in services}
    used = {int(address.rpartition(":")[2]) for address in url.values()} | {port for port in ports.values() if port}
    for name in (name for name in PORTS if name not in url):
        port = ports[name]
        if port is None:
            port = next_free(int(before[name].url.rpartition(":")[2]) if name in before else PORTS[name], used)
            used.add(port)
        elif not 0 < port < 65536:
            raise UserError(f"port {port}: a number from 1 to 65535 is needed")
        elif taken(port) or f"http://{HOST}:{port}" in url.values():
            raise UserError(f"port {port} of {HOST} is taken; choose another: make up {name.upper()}_PORT=N")
        url[name] = f"http://{HOST}:{port}"
        if name in before and "worker" in services and url[name] != before[name].url:
            raise UserError(f"the worker looks for {name} at {before[name].url}; `make down`, then `make up` again")
    return url


def _post(url: str, content: Mapping[str, Any] | None = None) -> Any:
    """What Prefect's API answers to a call with the project's login; OSError if it refuses or is away."""
    name, _, password = login().partition(":")
    answer = requests.post(url, json=content, auth=(name, password), timeout=30)
    answer.raise_for_status()
    return answer.json()


def _need_worker(url: str, since: str) -> None:
    """UserError where no worker of the pool has been heard of since an ISO time."""
    workers: list[dict[str, Any]] = _post(f"{url}/api/work_pools/{POOL}/workers/filter")
    if not any((worker.get("last_heartbeat_time") or "") > since for worker in workers):
        raise UserError("no worker is online yet")


def _end_lost_runs(url: str) -> None:
    """Runs that have lost their process are over: as running, they would hold up the next one of their dataset."""
    states = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]}}
    query: dict[str, Any] = {"flow_runs": {"state": states}, "work_pools": {"name": {"any_": [POOL]}}}
    for lost in _post(f"{url}/api/flow_runs/filter", query):
        over = "CANCELLED" if lost["state"]["type"] == "CANCELLING" else "CRASHED"  # Prefect allows no other way
        state = {"type": over, "message": "its process is gone; a new run goes on from its last checkpoint"}
        _post(f"{url}/api/flow_runs/{lost['id']}/set_state", {"state": state})
        print(f"run {lost['name']} was cut off", flush=True)


def down() -> None:
    """End the worker with the runs that it runs, which leave a checkpoint, then the servers."""
    services = recorded()
    for name in ("worker", "prefect", "mlflow"):
        end(name, _mark(name), services.get(name), STOP_S)
        if name == "worker" and "prefect" in services and services["prefect"].alive:
            with suppress(OSError):  # a server that does not answer is ended all the same
                _end_lost_runs(services["prefect"].url)
    if CLIENT.exists() and CLIENT.read_text().startswith(WRITTEN):
        CLIENT.unlink()
    RECORD.unlink(missing_ok=True)
    print("down; databases, logs and workspaces stay in .services/")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help=(up.__doc__ or "").split(".")[0])
    for name, port in PORTS.items():
        starting.add_argument(f"--{name}-port", type=int, help=f"default: {port}, or a free one")
    commands.add_parser("down", help=(down.__doc__ or "").split(".")[0])
    given = parser.parse_args()
    elsewhere = os.environ.get("PREFECT_API_URL")
    for name in [name for name in os.environ if name == "MLFLOW_TRACKING_URI" or name.startswith("PREFECT_")]:
        del os.environ[name]  # the services are this project's own, whatever else the user works with
    quiet_environment()
    try:
        with _alone():
            if given.command == "up":
                up({name: getattr(given, f"{name}_port") for name in PORTS})
                if elsewhere:
                    print(f"\nPREFECT_API_URL={elsewhere} is set in this shell, and the client goes there; unset it")
            else:
                down()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\ninterrupted; `make {given.command}` goes on, `make down` ends what is up", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

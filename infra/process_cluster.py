"""The cluster of infra/compose.yaml as processes on this machine, without a container engine: a run to a champion.

    .venv/bin/python infra/process_cluster.py [REPOSITORY]

PostgreSQL, an S3 server, MLflow with login, a Prefect server with login, a Ray head and a second node joined by token,
and a Prefect worker that has a git URL and the addresses of the services, nothing else. Everything listens on loopback
on free ports, under passwords made for this run, and ends with the script. REPOSITORY (default: this one) is cloned as
it is committed; it is what the worker clones and trains. Needs PostgreSQL 15 or newer (Debian: `apt-get install
postgresql`).
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from dpgan.environment import quiet_environment
from dpgan.errors import UserError

ROOT = Path(__file__).absolute().parent.parent
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
BUCKETS = ("mlflow", "dvc")
DEPLOYMENT, POOL = "train-dpgan/cluster", "cluster"
START_S = 300  # until a service must answer, on a busy machine


def free_port() -> int:
    """A TCP port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def postgres_programs() -> Path:
    """The folder of PostgreSQL's server programs, 15 or newer; UserError where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = [folders[-1]] if folders and int(folders[-1].parent.name) >= 15 else []
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise UserError("no PostgreSQL 15 or newer on this machine; install it (Debian: apt-get install postgresql)")
    return found[0]


def unprivileged() -> dict[str, Any]:
    """Who runs PostgreSQL, as arguments of Popen: it refuses to be root."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Cluster:
    """The services, started one after the other by `start`, ended by `stop`; their logs and data below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("postgres", "s3", "mlflow", "prefect", "ray")}
        names = ("postgres", "mlflow", "mlflow_admin", "prefect", "prefect_login", "s3", "ray", "dpgan", "session")
        self.secrets = {name: secrets.token_hex(24) for name in names}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.base = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
        }

    def url(self, service: str) -> str:
        return f"http://{HOST}:{self.ports[service]}"

    @property
    def s3(self) -> dict[str, str]:
        """Environment of those who use the S3 store."""
        return {
            "AWS_ACCESS_KEY_ID": "dpgan",
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url("s3"),
            "MLFLOW_S3_ENDPOINT_URL": self.url("s3"),
        }

    @property
    def ray(self) -> dict[str, str]:
        """Environment of those who join Ray."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.secrets["ray"]}

    @property
    def mlflow(self) -> dict[str, str]:
        """Environment of those who log to MLflow: an account that is no administrator."""
        return {
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": "dpgan",
            "MLFLOW_TRACKING_PASSWORD": self.secrets["dpgan"],
        }

    @property
    def prefect(self) -> dict[str, str]:
        """Environment of those who talk to Prefect's server."""
        return {
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"dpgan:{self.secrets['prefect_login']}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    @property
    def worker(self) -> dict[str, str]:
        """All that a Prefect worker gets: the addresses of the services, and how to log in."""
        address = {"RAY_ADDRESS": f"{HOST}:{self.ports['ray']}"}
        return self.base | self.s3 | self.ray | self.mlflow | self.prefect | address

    def start(self) -> None:
        """Start every service and wait until it answers; UserError where one does not."""
        quiet_environment()
        self.folder.chmod(0o711)  # PostgreSQL, another user, must find its own folder
        (self.folder / "home").mkdir()
        self._start_postgres()
        self._start_s3()
        self._start_mlflow()
        self._start_prefect()
        self._start_ray()

    def _start_postgres(self) -> None:
        programs, owner, folder = postgres_programs(), unprivileged(), self.folder / "postgres"
        folder.mkdir(mode=0o700)
        password, data = folder / "password", folder / "data"
        password.write_text(self.secrets["postgres"])
        if owner:
            for path in (folder, password):
                shutil.chown(path, owner["user"], owner["group"])
        self.run(
            [str(programs / "initdb"), f"--pgdata={data}", "--username=postgres", "--auth=scram-sha-256",
             f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"],
            cwd=folder, **owner,
        )  # fmt: skip
        password.unlink()
        self._spawn(
            "postgres",
            [str(programs / "postgres"), "-D", str(data), "-h", HOST, "-p", str(self.ports["postgres"]),
             "-c", "unix_socket_directories="],
            self.base, **owner,
        )  # fmt: skip
        self._wait("postgres", lambda: self.psql("postgres", "select 1"))
        self.psql("postgres", (ROOT / "infra/postgres/init.sql").read_text())

    def psql(self, database: str, script: str) -> str:
        """What a script of psql prints, run by the superuser."""
        env = self.base | {
            "PGPASSWORD": self.secrets["postgres"],
            "MLFLOW_DB_PASSWORD": self.secrets["mlflow"],
            "PREFECT_DB_PASSWORD": self.secrets["prefect"],
        }
        where = ["-h", HOST, "-p", str(self.ports["postgres"]), "-U", "postgres", "-d", database]
        return self.run(["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where], env, script)

    def _start_s3(self) -> None:
        self._spawn("s3", [str(BIN / "moto_server"), "-H", HOST, "-p", str(self.ports["s3"])], self.base)
        make = f"import boto3; [boto3.client('s3').create_bucket(Bucket=name) for name in {BUCKETS}]"
        self._wait("s3", lambda: self._ask("s3", "/"))
        self.run([sys.executable, "-c", make], self.base | self.s3)

    def _start_mlflow(self) -> None:
        database = f"postgresql+psycopg2://mlflow@{HOST}:{self.ports['postgres']}"
        users = self.folder / "mlflow_users.ini"
        text = (ROOT / "infra/mlflow/users.ini").read_text()
        users.write_text(text.replace("postgresql+psycopg2://mlflow@postgres:5432", database))
        server = {
            "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
            "PGPASSWORD": self.secrets["mlflow"],
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets["mlflow_admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["session"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._spawn(
            "mlflow",
            [str(BIN / "mlflow"), "server", "--app-name", "basic-auth", "--artifacts-destination", "s3://mlflow",
             "--workers", "1", "--host", HOST, "--port", str(self.ports["mlflow"])],
            self.base | self.s3 | server,
        )  # fmt: skip
        self._wait("mlflow", lambda: self._ask("mlflow", "/health"))
        make = (
            "import os; from mlflow.server import get_app_client; "
            f"get_app_client('basic-auth', {self.url('mlflow')!r}).create_user('dpgan', os.environ['NEW_PASSWORD'])"
        )
        admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow_admin"]}
        self.run([sys.executable, "-c", make], self.base | admin | {"NEW_PASSWORD": self.secrets["dpgan"]})

    def _start_prefect(self) -> None:
        server = {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": HOST,
            "PREFECT_SERVER_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_NAME": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": self.secrets["prefect"],
            "PREFECT_SERVER_API_AUTH_STRING": self.prefect["PREFECT_API_AUTH_STRING"],
        }
        where = ["--host", HOST, "--port", str(self.ports["prefect"])]
        self._spawn("prefect", [str(BIN / "prefect"), "server", "start", *where], self.base | self.prefect | server)
        self._wait("prefect", lambda: self._ask("prefect", "/api/health"))

    def _start_ray(self) -> None:
        address = f"{HOST}:{self.ports['ray']}"
        common = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={HOST}", "--include-dashboard=false"]
        # The address space is small: a full object store is not what this is about.
        common += ["--object-store-memory=200000000", "--num-cpus=2"]
        head = ["--head", f"--port={self.ports['ray']}", f"--temp-dir={self.folder / 'ray'}"]
        ask = f"import ray; ray.init({address!r}, log_to_driver=False); print(len(ray.nodes()))"
        for count, (name, how) in enumerate({"ray-head": head, "ray-worker": [f"--address={address}"]}.items(), 1):
            disk = {"NODE_DISK": str(self.folder / name)}  # of each node's own, for run.data_cache
            self._spawn(name, [*common, *how], self.base | self.s3 | self.ray | self.mlflow | disk)
            self._wait(
                name, lambda n=count: self.run([sys.executable, "-c", ask], self.base | self.ray).endswith(f"{n}\n")
            )

    def train(self, repository: str) -> str:
        """Run the pipeline of a repository to its end by way of the worker; returns the log of the flow run.

        Raises RuntimeError where it does not end well.
        """
        origin = self.folder / "origin"
        for command in (
            ["git", "clone", "-q", repository, str(origin)],
            ["git", "-C", str(origin), "checkout", "-q", "-B", "main"],
            ["dvc", "--cd", str(origin), "remote", "modify", "storage", "url", "s3://dvc"],
            ["git", "-C", str(origin), "-c", "user.name=dpgan", "-c", "user.email=dpgan@localhost", "commit", "-qam",
             "The remote of the cluster"],
        ):  # fmt: skip
            self.run(command, self.base)
        self.deploy(f"file://{origin}")
        self._spawn("worker", [str(BIN / "prefect"), "worker", "start", "--pool", POOL], self.worker)
        command = [str(BIN / "prefect"), "deployment", "run", DEPLOYMENT, "--watch"]
        try:
            return self.run(command, self.base | self.prefect)
        except UserError as error:
            log = (self.folder / "worker.log").read_text()
            raise RuntimeError(f"{error}\n{log[-6000:]}") from None

    def deploy(self, url: str) -> None:
        """The deployment of infra/prefect.cluster.yaml, for the repository at `url`, into a pool of process workers."""
        env = self.base | self.prefect | {"DPGAN_REPOSITORY": url}
        prefect = str(BIN / "prefect")
        self.run([prefect, "--no-prompt", "work-pool", "create", POOL, "--type", "process", "--overwrite"], env)
        self.run(
            [prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "infra/prefect.cluster.yaml")], env, cwd=ROOT
        )

    def run(
        self, command: list[str], env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None,
        **user: Any,
    ) -> str:  # fmt: skip
        """The output of a command; UserError where it fails."""
        done = subprocess.run(
            command, env=env or self.base, input=stdin, capture_output=True, text=True, check=False,
            cwd=cwd or self.folder, **user,
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stderr}{done.stdout[-4000:]}")
        return str(done.stdout)

    def _spawn(self, name: str, command: list[str], env: Mapping[str, str], **user: Any) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=dict(env), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
            )

    def _ask(self, service: str, path: str) -> None:
        login = tuple(self.prefect["PREFECT_API_AUTH_STRING"].split(":")) if service == "prefect" else None
        requests.get(self.url(service) + path, auth=login, timeout=10).raise_for_status()

    def _wait(self, name: str, ask: Callable[[], object]) -> None:
        """Until `ask` no longer raises; UserError with the log where the service ends or stays silent."""
        deadline = time.monotonic() + START_S
        while self.processes[name].poll() is None and time.monotonic() < deadline:
            try:
                ask()
            except (UserError, OSError) as error:  # requests' errors are OSErrors
                seen = error
                time.sleep(0.5)
            else:
                print(f"{name} is up", flush=True)
                return
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        raise UserError(f"{name} does not answer: {seen}\n{log[-4000:]}")

    def stop(self) -> None:
        """End what was started, the last first, each with its children: by process, never by name."""
        for name, process in reversed(self.processes.items()):
            with suppress(psutil.NoSuchProcess):
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                if not name.startswith("ray"):  # `ray start` takes half a minute to end what is gone anyway
                    process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
                    psutil.wait_procs(tree[:1], timeout=30)
                for one in tree:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait()
        self.processes.clear()


def main() -> None:
    """Start the cluster, train, say who is champion, end everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("repository", nargs="?", default=str(ROOT), help="git URL or folder of the project to train")
    repository = parser.parse_args().repository
    with tempfile.TemporaryDirectory(prefix="dpgan-") as name:  # short: Ray's sockets lie in it
        cluster = Cluster(Path(name))
        try:
            cluster.start()
            print(cluster.train(repository))
            print(cluster.champion())
        except UserError as error:
            sys.exit(f"error: {error}")
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()

"""The cluster of infra/compose.yaml as processes on this machine, without a container engine: a run to a champion.

    .venv/bin/python infra/process_cluster.py [REPOSITORY]

PostgreSQL, an S3 server, MLflow with login, a Prefect server with login, a Ray head and a second node joined by token,
and a Prefect worker that has a git URL and the addresses of the services, nothing else. All are on free ports of
loopback (Ray listens on every interface, whatever it is told, and asks for its token), under passwords made for this
run, and end with the script. REPOSITORY (default: this one, as it is committed) is what is cloned and trained.
Needs PostgreSQL 15 or newer (Debian: `apt-get install postgresql`).
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from processes import HOST, Processes, ask, free_port

from dpgan.errors import UserError

INFRA = Path(__file__).absolute().parent
BIN = Path(sys.executable).parent
JOINED = (
    "import ray; ray.init({address!r}, log_to_driver=False); assert sum(n['Alive'] for n in ray.nodes()) == {nodes}"
)
CHAMPION = """
import mlflow, numpy as np
champion = mlflow.MlflowClient().get_model_version_by_alias({name!r}, "champion")
photo = mlflow.pyfunc.load_model("models:/{name}@champion").predict(np.zeros((32, 64), np.uint8), params={{"seed": 1}})
print("champion: version", champion.version, "of", champion.name, "paints", photo.dtype, photo.shape)
"""


def postgres_programs() -> Path:
    """The folder of PostgreSQL's server programs, 15 or newer; UserError where there is none."""
    versions = {int(path.name): path for path in Path("/usr/lib/postgresql").glob("[0-9]*") if path.name.isdigit()}
    newest = max(versions, default=0)
    if newest >= 15 and (versions[newest] / "bin/postgres").exists():
        return versions[newest] / "bin"
    raise UserError("no PostgreSQL 15 or newer in /usr/lib/postgresql (Debian: apt-get install postgresql)")


def unprivileged() -> dict[str, Any]:
    """Who runs PostgreSQL, as arguments of Popen: it refuses to be root."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Cluster(Processes):
    """The services of a cluster, and who knows which of their secrets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = {name: free_port() for name in ("postgres", "s3", "mlflow", "prefect", "ray", "git")}
        names = ("postgres", "mlflow_db", "prefect_db", "s3", "admin", "session", "account", "prefect", "ray")
        self.secrets = {name: secrets.token_hex(24) for name in names}
        self.base = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "DO_NOT_TRACK": "1",
        }
        self.s3 = {
            "AWS_ACCESS_KEY_ID": "dpgan",
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url("s3"),
            "MLFLOW_S3_ENDPOINT_URL": self.url("s3"),
        }
        self.mlflow = self._mlflow_account("dpgan", "account")
        self.prefect = {
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"dpgan:{self.secrets['prefect']}",
        }
        self.ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.secrets["ray"]}
        self.ray_address = f"{HOST}:{self.ports['ray']}"

    def url(self, service: str) -> str:
        return f"http://{HOST}:{self.ports[service]}"

    def _mlflow_account(self, name: str, secret: str) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": self.secrets[secret],
        }

    def up(self) -> None:
        """Start every service, each when those that it needs answer; UserError where one does not."""
        self.folder.chmod(0o711)  # PostgreSQL, another user, must find its own folder
        (self.folder / "home").mkdir()
        self._postgres()
        self.start(
            "s3", [str(BIN / "moto_server"), "-H", HOST, "-p", str(self.ports["s3"])], self.base,
            lambda: ask(self.url("s3")),
        )  # fmt: skip
        self._mlflow()
        self._prefect()
        self._ray()

    def _postgres(self) -> None:
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
            self.base, cwd=folder, **owner,
        )  # fmt: skip
        password.unlink()
        self.start(
            "postgres",
            [str(programs / "postgres"), "-D", str(data), "-h", HOST, "-p", str(self.ports["postgres"]),
             "-c", "unix_socket_directories="],
            self.base, lambda: self.sql("select 1"), **owner,
        )  # fmt: skip
        self.sql((INFRA / "postgres/init.sql").read_text())

    def sql(self, script: str, program: str = "psql", *arguments: str) -> str:
        """What psql prints for a script; or the output of another of PostgreSQL's clients. Run by the superuser."""
        env = self.base | {
            "PGHOST": HOST,
            "PGPORT": str(self.ports["postgres"]),
            "PGUSER": "postgres",
            "PGPASSWORD": self.secrets["postgres"],
            "MLFLOW_DB_PASSWORD": self.secrets["mlflow_db"],
            "PREFECT_DB_PASSWORD": self.secrets["prefect_db"],
        }
        return self.run([program, *(arguments or ["-XqAt", "-v", "ON_ERROR_STOP=1"])], env, script)

    def _mlflow(self) -> None:
        database = f"postgresql+psycopg2://mlflow@{HOST}:{self.ports['postgres']}"
        users = self.folder / "users.ini"
        text = (INFRA / "mlflow/users.ini").read_text()
        users.write_text(text.replace("postgresql+psycopg2://mlflow@postgres:5432", database))
        server = {
            "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
            "PGPASSWORD": self.secrets["mlflow_db"],
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets["admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["session"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.start(
            "mlflow",
            [str(BIN / "mlflow"), "server", "--app-name", "basic-auth", "--artifacts-destination", "s3://mlflow",
             "--host", HOST, "--port", str(self.ports["mlflow"]), "--workers", "1"],
            self.base | self.s3 | server, lambda: ask(f"{self.url('mlflow')}/health"),
        )  # fmt: skip

    def _prefect(self) -> None:
        server = {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": HOST,
            "PREFECT_SERVER_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_NAME": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": self.secrets["prefect_db"],
            "PREFECT_SERVER_API_AUTH_STRING": self.prefect["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self.start(
            "prefect",
            [str(BIN / "prefect"), "server", "start", "--host", HOST, "--port", str(self.ports["prefect"])],
            self.base | server, lambda: ask(f"{self.url('prefect')}/api/health"),
        )  # fmt: skip

    def _ray(self) -> None:
        head = ["--head", f"--port={self.ports['ray']}", "--include-dashboard=false", f"--temp-dir={self.folder}/ray"]
        nodes = {"ray-head": head, "ray-worker": [f"--address={self.ray_address}"]}
        for count, (name, how) in enumerate(nodes.items(), 1):
            joined = [sys.executable, "-c", JOINED.format(address=self.ray_address, nodes=count)]
            self.start(
                name,
                [str(BIN / "ray"), "start", "--block", "--num-cpus=2", "--object-store-memory=200000000", *how],
                self.base | self.s3 | self.ray | self.mlflow | {"NODE_DISK": str(self.folder / name)},
                partial(self.run, joined, self.base | self.ray),
            )

    def deploy(self, repository: str) -> None:
        """Serve a copy of the repository by git, deploy its flow, and start a Prefect worker."""
        origin = self.folder / "origin"
        who = ["-c", "user.name=dpgan", "-c", "user.email=dpgan@localhost"]
        for command in (
            ["git", "clone", "-q", repository, str(origin)],
            ["git", "-C", str(origin), "checkout", "-q", "-B", "main"],
            ["dvc", "--cd", str(origin), "remote", "modify", "storage", "url", "s3://dvc"],
            ["git", "-C", str(origin), *who, "commit", "-qam", "The remote of the cluster"],
        ):
            self.run(command, self.base)
        git = ["git", "daemon", f"--listen={HOST}", f"--port={self.ports['git']}", f"--base-path={self.folder}",
               "--export-all", "--enable=receive-pack", "--reuseaddr"]  # fmt: skip
        url = f"git://{HOST}:{self.ports['git']}/origin"
        self.start("git", git, self.base, lambda: self.run(["git", "ls-remote", url], self.base))
        admin = self._mlflow_account("admin", "admin") | {
            "DPGAN_ACCOUNT": "dpgan",
            "DPGAN_ACCOUNT_PASSWORD": self.secrets["account"],
            "DPGAN_REPOSITORY": url,
        }
        first = [sys.executable, str(INFRA / "first_start.py")]
        self.run(first, self.base | self.s3 | self.prefect | admin, cwd=origin)
        self.start(
            "worker",
            [str(BIN / "prefect"), "worker", "start", "--pool", "dpgan"],
            self.base | self.s3 | self.ray | self.mlflow | self.prefect
            | {"RAY_ADDRESS": self.ray_address, "DPGAN_WORKSPACES": str(self.folder / "workspaces")},
            lambda: None,
        )  # fmt: skip

    def train(self, dataset: str = "toyscapes") -> str:
        """Run the pipeline to its end by way of the worker; what Prefect's client said. UserError where it fails."""
        command = [str(BIN / "prefect"), "deployment", "run", f"train-dpgan/{dataset}", "--watch"]
        try:
            return self.run(command, self.base | self.prefect)
        except UserError as error:
            raise UserError(f"{error}\n{(self.folder / 'worker.log').read_text()[-8000:]}") from None

    def champion(self) -> str:
        """Who is champion, loaded and tried by a process that knows MLflow's address and login, nothing else."""
        name = f"dpgan-{yaml.safe_load((self.folder / 'origin/params.yaml').read_text())['dataset']}"
        return self.run([sys.executable, "-c", CHAMPION.format(name=name)], self.base | self.mlflow)


def main() -> None:
    """Start the cluster, train, say who is champion, end everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("repository", nargs="?", default=str(INFRA.parent), help="git URL or folder of the project")
    repository = parser.parse_args().repository
    prefix = "dpgan-"  # short: Ray's sockets lie in the folder
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as name, Cluster(Path(name)) as cluster:
            cluster.up()
            cluster.deploy(repository)
            print(cluster.train(), cluster.champion(), sep="\n")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

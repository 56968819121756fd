"""The cluster as processes: PostgreSQL, S3, logins, two Ray nodes joined by token, a worker with a git URL only."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from chaos.prefect_client import PrefectClient
from process_cluster import Cluster, postgres_programs

from dpgan.errors import UserError

from .conftest import make_clone

try:
    postgres_programs()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

# Enough to pass the gate; the data goes to each node by way of the S3 store.
PARAMS = """
dataset: toyscapes
raw: data/toyscapes/raw
seed: 0
judge: {images: 320, batch: 8}
train: {images: 1600, batch: 4, holdout: 16, evaluate_images: 800}
run: {workers: 2, device: cpu, placement: STRICT_SPREAD, data_cache: $NODE_DISK/dpgan, checkpoint_images: 400}
evaluate: {noise_seed: 0}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    prefix = "dpgan-"  # short: Ray's sockets lie in the folder
    with tempfile.TemporaryDirectory(prefix=prefix) as name, Cluster(Path(name)) as cluster:
        cluster.up()
        yield cluster


def test_nothing_answers_without_a_login(cluster: Cluster) -> None:
    for url in (f"{cluster.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1",
                f"{cluster.url('mlflow')}/", f"{cluster.url('prefect')}/api/admin/settings"):  # fmt: skip
        assert requests.get(url, timeout=30).status_code == 401, url
    join = [sys.executable, "-c", "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"]
    with pytest.raises(UserError, match="InvalidAuthToken"):
        cluster.run([*join, cluster.ray_address], cluster.base | {"RAY_AUTH_MODE": "disabled"})


def test_it_trains_to_a_champion(cluster: Cluster, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    (clone.root / "params.yaml").write_text(PARAMS)
    clone.edit("data/toyscapes/dataset.yaml", "{train: 32, val: 8,", "{train: 128, val: 64,")
    clone.commit("enough to beat the floor")
    cluster.deploy(str(clone.root))
    client = PrefectClient(f"{cluster.url('prefect')}/api", cluster.prefect["PREFECT_API_AUTH_STRING"])
    run = client.start("toyscapes", approval=True)
    client.wait(run, "Paused")
    client.decide(run, promote=True, reason="it paints streets")
    client.wait(run, "Completed")
    assert "version 1 is champion" in client.logs(run)
    assert "version 1 of dpgan-toyscapes paints uint8 (32, 64, 3)" in cluster.champion()
    for node in ("ray-head", "ray-worker"):
        assert list((cluster.folder / node / "dpgan").glob("*/meta.json")), "each node fetched the data from the store"
    logs = "".join(path.read_text(errors="replace") for path in cluster.folder.glob("*.log"))
    assert not [name for name, secret in cluster.secrets.items() if secret in logs]


def test_a_backup_brings_the_databases_back(cluster: Cluster) -> None:
    before = cluster.champion()
    for name in ("mlflow", "mlflow_users", "prefect"):
        dump = str(cluster.folder / f"{name}.dump")
        cluster.sql("", "pg_dump", "--format=custom", f"--file={dump}", name)
        cluster.sql(f"drop database {name} with (force);")
        cluster.sql("", "pg_restore", "--create", "--dbname=postgres", dump)
    assert cluster.champion() == before

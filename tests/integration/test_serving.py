"""`mlflow models serve` on a registered model, asked over HTTP as a user's program would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
from test_packaging import DP, tiny_package

from dpgan.registry.packaging import register, using
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        uri = tracking_uri(root)
        register(uri, "dpgan-x", open_run(root, "x", "run", {}, {}), tiny_package(DP))
        yield uri


@pytest.fixture(scope="module")
def server(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The scoring server, in a process group and a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/dpgan-x/1", "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"MLFLOW_TRACKING_URI": uri, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            deadline = time.monotonic() + 240
            while not answers(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield client
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while group_lives(process.pid):  # the server itself is a child of `mlflow models serve`
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def group_lives(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_paints_what_the_model_paints_in_this_process(uri: str, server: httpx.Client, tmp_path: Path) -> None:
    """Bit for bit: a map, a batch, and noise for a region."""
    with using(uri):
        model = mlflow.pyfunc.load_model("models:/dpgan-x/1", dst_path=str(tmp_path))
    batch = np.random.default_rng(0).choice(np.array([7, 2, 255], np.uint8), size=(2, 40, 50))
    for labels, params in ((batch[0], {"seed": 4}), (batch, {}), (batch[1], {"seed": 4, "noise": {"7": 6}})):
        body = {"inputs": labels.tolist(), "params": params}
        answer = server.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(answer.json()["predictions"], model.predict(labels, params=params))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": [[7, 9]]}, "unknown label ids: 9 (1 pixels); x knows: 2, 7, 255"),
        ({"inputs": [[7.5]]}, "labels must be integers"),
        ({"inputs": [7]}, "labels must have the shape"),
        ({"inputs": [[7]], "params": {"noise": {"9": 1}}}, "not defined in the schema found: {'9'}"),
        ({"inputs": [[7]], "params": {"seed": 1.5}}, "seed"),
        ({"inputs": [[7]], "params": {"sead": 1}}, "did you mean 'seed'?"),
        ({"inputs": []}, "there are no labels"),
        ({"inputs": [[[7, 7, 7]] * 8] * 8}, "a label map in colours"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(server: httpx.Client, body: object, message: str) -> None:
    answer = server.post("/invocations", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert "Traceback" not in answer.text

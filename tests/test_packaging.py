"""The packaged generator: what it holds, what it paints, and that it needs nothing of this package."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
import torch

from dpgan.environment import quiet_environment
from dpgan.labels import Card, ClassInfo, Layout
from dpgan.models.generators import build_generator
from dpgan.registry.packaging import Package, generator_config, load_files, register, using
from dpgan.registry.tracking import open_run, tracking_uri

CARD = Card(
    name="x",
    title="x",
    licence="none",
    layout=Layout(image="a/{split}/{id}.png", label="b/{split}/{id}.png"),
    splits={"train": "a", "val": "b"},
    size=(32, 64),
    preset="toyscapes",
    classes=[
        ClassInfo(id=7, name="road", color=(1, 2, 3), evaluate=True),
        ClassInfo(id=2, name="sky", color=(4, 5, 6)),
        ClassInfo(id=255, name="void", color=(0, 0, 0), void=True),
    ],
)


DP = {"kind": "dp", "num_classes": 3, "noise_channels": 4, "width": 2}
SPADE = {"kind": "spade", "num_classes": 3, "width": 2, "pyramid_width": 4}


def tiny_package(arguments: dict[str, Any]) -> Package:
    torch.manual_seed(0)
    generator = build_generator(**arguments)
    with torch.no_grad():  # the initial weights are so small that every photo is grey
        generator.get_parameter("to_rgb.weight").mul_(20_000)
    return Package(generator.state_dict(), generator_config(CARD, arguments, "data-hash"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def uri(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        patch.chdir(elsewhere)
        quiet_environment()
        uri = tracking_uri(root)
        run = open_run(root, "x", "run", {}, {})
        assert register(uri, "dpgan-x", run, tiny_package(DP)) == 1
        assert register(uri, "dpgan-x", run, tiny_package(DP)) == 1  # the same content: the same version
        assert register(uri, "dpgan-x", run, tiny_package(SPADE)) == 2
        assert "MLFLOW_TRACKING_URI" not in os.environ  # MLflow's global state is put back
        assert list(elsewhere.iterdir()) == []  # nor is anything left in the current folder
        mlflow.MlflowClient(uri).set_registered_model_alias("dpgan-x", "champion", "1")
        yield uri


@pytest.fixture(scope="module")
def model(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("download")
    with using(uri):
        return mlflow.pyfunc.load_model("models:/dpgan-x/1", dst_path=str(folder))


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([7, 2, 255], np.uint8), size=(2, 40, 50))


def test_the_package_holds_code_weights_and_config_but_no_pickle(uri: str, tmp_path: Path) -> None:
    with using(uri):
        mlflow.artifacts.download_artifacts("models:/dpgan-x/1", dst_path=str(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not {path.suffix for path in files} & {".pkl", ".pickle", ".pth", ".pt", ".bin"}
    assert {"generator.safetensors", "config.json", "serving.py", "layers.py", "dp.py", "baselines.py"} <= {
        p.name for p in files
    }
    config = json.loads(next(p for p in files if p.name == "config.json").read_text())
    assert config["id_table"][7] == 0
    assert config["id_table"][2] == 1
    assert config["classes"] == ["road", "sky", "void"]


def test_loaded_files_are_those_that_were_registered(uri: str) -> None:
    assert load_files(uri, "dpgan-x", 1).digest == tiny_package(DP).digest
    assert load_files(uri, "dpgan-x", 2).digest == tiny_package(SPADE).digest


def test_a_batch_paints_what_single_maps_paint_at_their_own_size(model: Any, labels: np.ndarray) -> None:
    batch = model.predict(labels, params={"seed": 3})
    assert batch.shape == (2, 40, 50, 3)
    assert batch.dtype == np.uint8
    assert batch.std() > 1
    for one, photo in zip(labels, batch, strict=True):
        np.testing.assert_array_equal(model.predict(one, params={"seed": 3}), photo)


def test_the_seed_alone_decides_the_noise(model: Any, labels: np.ndarray) -> None:
    first = model.predict(labels[0], params={"seed": 1})
    torch.rand(5)  # the global generator does not matter
    np.testing.assert_array_equal(model.predict(labels[0], params={"seed": 1}), first)
    assert (model.predict(labels[0], params={"seed": 2}) != first).any()
    np.testing.assert_array_equal(model.predict(labels[0]), model.predict(labels[0], params={"seed": 0}))


@pytest.mark.parametrize("number", [1, 2])
def test_photos_are_what_the_generator_paints(uri: str, labels: np.ndarray, number: int, tmp_path: Path) -> None:
    indices = np.select([labels == 7, labels == 2], [0, 1], 2)[:1, :32, :32]
    arguments = (DP, SPADE)[number - 1]
    generator = build_generator(**arguments)
    generator.load_state_dict(dict(tiny_package(arguments).weights))
    noise = torch.randn(1, generator.noise_channels, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        painted = generator.eval()(torch.from_numpy(indices), noise)[0].permute(1, 2, 0).numpy()
    with using(uri):
        model = mlflow.pyfunc.load_model(f"models:/dpgan-x/{number}", dst_path=str(tmp_path))
    photo = model.predict(labels[0, :32, :32], params={"seed": 5})
    assert photo.std() > 1
    np.testing.assert_allclose(photo, (painted + 1) * 127.5, atol=0.51)


def test_unknown_ids_are_listed_with_counts(model: Any, labels: np.ndarray) -> None:
    labels[0, 0, :3] = 9
    with pytest.raises(ValueError, match=r"unknown label ids: 9 \(3 pixels\); x knows: 2, 7, 255"):
        model.predict(labels)
    with pytest.raises(ValueError, match=r"unknown label ids: -1 \(1 pixels\), 300 \(1 pixels\)"):
        model.predict(np.array([[-1, 300, 7]]))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((32, 32), np.float32, "not float32"), ((32,), np.uint8, r"not \[32\]"), ((0, 4), np.uint8, "not")],
)
def test_other_types_and_ranks_are_refused(model: Any, shape: tuple[int, ...], dtype: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(np.full(shape, 7, dtype=dtype))


def test_the_scoring_server_answers_json(model: Any, labels: np.ndarray) -> None:
    from mlflow.pyfunc.scoring_server import init

    body = {"inputs": labels[0].tolist(), "params": {"seed": 4}}

    async def post() -> Any:
        transport = httpx.ASGITransport(app=init(model))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post("/invocations", json=body)).json()

    answer = asyncio.run(post())
    np.testing.assert_array_equal(answer["predictions"], model.predict(labels[0], params={"seed": 4}))


HANDOFF = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dpgan":
            raise ImportError("dpgan is not installed here")

sys.meta_path.insert(0, Blocked())
try:
    import dpgan
except ImportError:
    pass
else:
    raise SystemExit("dpgan was importable: this proves nothing")
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/dpgan-x@champion")
labels = numpy.full((33, 40), 7, numpy.uint8)
one, again, other = (model.predict(labels, params={"seed": seed}) for seed in (1, 1, 2))
assert one.shape == (33, 40, 3) and one.dtype == numpy.uint8
assert (one == again).all() and (one != other).any()
from dpgan_generator.generators import GENERATORS, build_generator
assert [build_generator(kind, num_classes=3, width=2).num_classes for kind in GENERATORS] == [3, 3, 3]
"""


def test_the_champion_paints_where_dpgan_is_not_installed(uri: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-I", "-c", HANDOFF]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

"""The packaged generator: what it holds, what it paints, and that it needs nothing of this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import ROOT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.types import ParamSchema, ParamSpec

from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.labels import Card, ClassInfo, Layout
from dpgan.models.generators import build_generator
from dpgan.registry import packaging
from dpgan.registry.packaging import Package, generator_config, load_files, register, using
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run

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


FACTS = {"git.commit": "c0ffee", "seed": 3, "settings": {"images": 24}}


def tiny_package(arguments: dict[str, Any], files: tuple[Path, ...] = ()) -> Package:
    torch.manual_seed(0)
    generator = build_generator(**arguments)
    with torch.no_grad():  # the initial weights are so small that every photo is grey
        generator.get_parameter("to_rgb.weight").mul_(20_000)
    return Package(generator.state_dict(), generator_config(CARD, arguments, "data-hash"), FACTS, files)


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
        report = tmp_path_factory.mktemp("evaluation") / "report.html"
        report.write_text("<p>scores</p>")
        assert register(uri, "dpgan-x", run, tiny_package(DP, (report,))) == 1
        report.write_text("<p>the same scores, an hour later</p>")
        assert register(uri, "dpgan-x", run, tiny_package(DP, (report,))) == 1  # the same model: the same version
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


def test_in_bf16_the_photos_are_nearly_those_of_fp32(uri: str, model: Any, labels: np.ndarray, tmp_path: Path) -> None:
    with using(uri):
        half = mlflow.pyfunc.load_model(
            "models:/dpgan-x/1", dst_path=str(tmp_path), model_config={"precision": "bf16"}
        ).predict(labels)
        with pytest.raises(MlflowException, match="precision must be one of fp32, bf16, not 'fp8'"):
            mlflow.pyfunc.load_model("models:/dpgan-x/1", dst_path=str(tmp_path), model_config={"precision": "fp8"})
    whole = model.predict(labels)
    assert not np.array_equal(half, whole)
    assert np.abs(half.astype(int) - whole).mean() < 8


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


def artifacts(uri: str, number: int) -> Path:
    """The folder in which the store itself keeps a version's artifacts."""
    return Path(MlflowClient(uri).get_model_version_download_uri("dpgan-x", str(number)).removeprefix("file://"))


def test_loaded_files_are_those_that_were_registered(uri: str) -> None:
    first = load_files(uri, "dpgan-x", 1)
    assert first.digest == tiny_package(DP).digest
    assert first.facts.items() >= FACTS.items()
    assert load_files(uri, "dpgan-x", 2).digest == tiny_package(SPADE).digest


FILES = ["artifacts/receipt.json", "artifacts/generator.safetensors", "artifacts/report.html", "serving.py", "MLmodel",
         "code/dpgan_generator/layers.py", "requirements.txt"]  # fmt: skip


def test_the_tag_signs_the_receipt_and_the_receipt_the_files(uri: str, tmp_path: Path) -> None:
    with using(uri):
        folder = Path(mlflow.artifacts.download_artifacts("models:/dpgan-x/1", dst_path=str(tmp_path)))
    signature = MlflowClient(uri).get_model_version("dpgan-x", "1").tags["receipt_sha256"]
    receipt = folder / "artifacts/receipt.json"
    assert file_sha256(receipt) == signature
    content = json.loads(receipt.read_text())
    assert content.items() >= FACTS.items()
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert files.keys() >= {*FILES, "artifacts/config.json"}
    assert files.keys() - content["sha256"].keys() == {"artifacts/receipt.json", "registered_model_meta"}
    assert content["sha256"] == {name: file_sha256(files[name]) for name in content["sha256"]}


@pytest.mark.parametrize("name", FILES)
def test_files_that_were_altered_are_refused(uri: str, name: str) -> None:
    path = artifacts(uri, 1) / name
    content = path.read_bytes()
    try:
        path.write_bytes(content + b"\n")
        with pytest.raises(UserError, match=f"dpgan-x version 1: changed since it was registered: {name};"):
            load_files(uri, "dpgan-x", 1)
        path.unlink()
        with pytest.raises(UserError, match=name):
            load_files(uri, "dpgan-x", 1)
    finally:
        path.write_bytes(content)
    load_files(uri, "dpgan-x", 1)


def test_an_additional_file_is_refused(uri: str) -> None:
    """Code of a name that the model imports would run in its place."""
    path = artifacts(uri, 1) / "code/safetensors.py"
    path.touch()
    try:
        with pytest.raises(UserError, match=r"changed since it was registered: code/safetensors\.py;"):
            load_files(uri, "dpgan-x", 1)
    finally:
        path.unlink()


def test_files_that_are_gone_are_named(uri: str) -> None:
    folder = artifacts(uri, 1)
    folder.rename(folder.with_name("away"))
    try:
        with pytest.raises(UserError, match=f"dpgan-x version 1: its files are not in .*{folder.name}"):
            load_files(uri, "dpgan-x", 1)
    finally:
        folder.with_name("away").rename(folder)


def test_a_consumer_can_check_before_any_of_it_runs(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/handoff.md, as they stand there."""
    (check,) = re.findall(r"```python\n(import hashlib.*?)```", (ROOT / "docs/handoff.md").read_text(), re.DOTALL)
    check = check.replace("dpgan-toyscapes", "dpgan-x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    made: dict[str, Any] = {}
    for attempt, name in enumerate([None, "serving.py", "artifacts/receipt.json"]):
        (tmp_path / str(attempt)).mkdir()
        monkeypatch.chdir(tmp_path / str(attempt))
        if name is None:
            exec(check, made)
            assert made["model"].predict(np.full((32, 32), 7, np.uint8)).shape == (32, 32, 3)
            continue
        path = artifacts(uri, 1) / name
        content = path.read_bytes()
        try:
            path.write_bytes(content + b"\nraise AssertionError('it ran')\n")
            with pytest.raises(SystemExit, match="altered"):
                exec(check, {})
        finally:
            path.write_bytes(content)


def test_versions_from_before_the_whole_receipt_are_checked_as_then(uri: str, tmp_path: Path) -> None:
    with using(uri):
        folder = Path(mlflow.artifacts.download_artifacts("models:/dpgan-x/1", dst_path=str(tmp_path)))
    receipt = folder / "artifacts/receipt.json"
    content = json.loads(receipt.read_text())
    content["sha256"] = {Path(name).name: sha for name, sha in content["sha256"].items() if "artifacts/" in name}
    receipt.write_text(json.dumps(content))
    tags = {"receipt_sha256": file_sha256(receipt)}
    assert packaging._altered(folder, tags) == []
    (folder / "artifacts/config.json").write_text("{}")
    assert packaging._altered(folder, tags) == ["artifacts/config.json"]


def test_a_version_from_before_the_receipts_has_its_digest(uri: str) -> None:
    client = MlflowClient(uri)
    signature = client.get_model_version("dpgan-x", "2").tags["receipt_sha256"]
    config = next(artifacts(uri, 2).rglob("config.json"))
    content = config.read_bytes()
    client.delete_model_version_tag("dpgan-x", "2", "receipt_sha256")
    try:
        assert load_files(uri, "dpgan-x", 2).facts == {}
        config.write_bytes(content + b" ")
        with pytest.raises(UserError, match=r"config\.json"):
            load_files(uri, "dpgan-x", 2)
    finally:
        config.write_bytes(content)
        client.set_model_version_tag("dpgan-x", "2", "receipt_sha256", signature)


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


def test_regions_are_painted_with_noise_of_their_own(uri: str, model: Any, labels: np.ndarray) -> None:
    one = labels[0, :32, :32]
    generator = build_generator(**DP)
    generator.load_state_dict(dict(tiny_package(DP).weights))
    five, six = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    noise = torch.where(torch.from_numpy(one == 7)[..., None], six, five).permute(2, 0, 1)[None]
    indices = torch.from_numpy(np.select([one == 7, one == 2], [0, 1], 2))[None]
    with torch.no_grad():
        painted = generator.eval()(indices, noise)[0].permute(1, 2, 0).numpy()
    photo = model.predict(one, params={"seed": 5, "noise": {"7": 6}})
    assert (photo != model.predict(one, params={"seed": 5})).any()
    np.testing.assert_allclose(photo, (painted + 1) * 127.5, atol=0.51)


def test_regions_of_one_seed_are_no_regions(model: Any, labels: np.ndarray) -> None:
    """Bit for bit, and whichever labels of the table the map has."""
    plain = model.predict(labels, params={"seed": 5})
    np.testing.assert_array_equal(model.predict(labels, params={"seed": 5, "noise": {"7": 5, "2": 5}}), plain)
    everywhere = {"7": 5, "2": 5, "255": 5}
    np.testing.assert_array_equal(model.predict(labels, params={"seed": 1, "noise": everywhere}), plain)
    road = np.full((32, 32), 7, np.uint8)
    others = model.predict(road, params={"seed": 5, "noise": {"2": 6}})
    np.testing.assert_array_equal(others, model.predict(road, params={"seed": 5}))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"noise": {"9": 1}}, "not defined in the schema found: {'9'}"),
        ({"noise": {"7": 1.5}}, "Expected type long, received type float"),
        ({"noise": {"7": None}}, "noise of label 7 must be an integer of 64 bits, not None"),
        ({"seed": None}, "seed must be an integer of 64 bits, not None"),
        ({"seed": 2**63}, "seed must be an integer of 64 bits, not 9223372036854775808"),
        ({"seed": "1"}, "seed"),
    ],
)
def test_labels_and_seeds_that_there_are_not_are_refused(model: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=re.escape(message)):
        model.predict(np.full((32, 32), 7, np.uint8), params=params)


@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (1, 40), (2, 8, 40)])
def test_any_size_is_painted(model: Any, shape: tuple[int, ...]) -> None:
    photo = model.predict(np.full(shape, 2, np.uint8), params={"seed": -(2**63), "noise": {"2": 2**63 - 1}})
    assert (photo.shape, photo.dtype) == ((*shape, 3), np.uint8)


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
    with pytest.raises(MlflowException, match=r"unknown label ids: 9 \(3 pixels\); x knows: 2, 7, 255"):
        model.predict(labels)
    with pytest.raises(MlflowException, match=r"unknown label ids: -1 \(1 pixels\), 300 \(1 pixels\)"):
        model.predict(np.array([[-1, 300, 7]]))


def test_messages_are_short_whatever_is_sent(model: Any) -> None:
    """A million unknown ids, labels and parameters, and a seed of a million digits."""
    ids = np.arange(1000 * 1000).reshape(1000, 1000) + 1000
    with pytest.raises(MlflowException, match=r"1004 \(1 pixels\) and 999995 more; x knows: 2, 7, 255$"):
        model.predict(ids)
    road, many = np.full((8, 8), 7, np.uint8), {str(i): 1 for i in range(1000, 10**5)}
    for params in ({"noise": many}, many, {"seed": 10**4000}, {"s" * 10**6: 1}):
        with pytest.raises(MlflowException) as error:
            model.predict(road, params=params)
        assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sead": 1}, "unknown parameter 'sead'; did you mean 'seed'?; known: noise, seed"),
        ({"seed": 1, "foo": 1}, "unknown parameter 'foo'; known: noise, seed"),
    ],
)
def test_unknown_parameters_are_refused(model: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=re.escape(message)):
        model.predict(np.full((32, 32), 7, np.uint8), params=params)


def test_other_models_of_the_process_keep_mlflows_rule(model: Any) -> None:
    assert model.predict(np.full((32, 32), 7, np.uint8)).shape == (32, 32, 3)  # ours is loaded
    theirs = ParamSchema([ParamSpec("temperature", "double", 1.0)])
    assert mlflow.pyfunc._enforce_params_schema({"temperature": 2.0, "foo": 1}, theirs) == {"temperature": 2.0}


COLOURS = r"a label map in colours, .*; give ids \[H, W\] or \[B, H, W\]"


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((32, 32), np.float32, "not float32"),
        ((32,), np.uint8, r"not \[32\]"),
        ((0, 4), np.float64, "there are no labels; give ids"),
        ((0,), np.float64, "there are no labels; give ids"),
        ((64, 128, 3), np.uint8, COLOURS),
        ((64, 128, 4), np.uint8, COLOURS),
        ((2, 64, 128, 3), np.uint8, COLOURS),
        ((2, 2, 64, 128), np.uint8, r"the shape \[H, W\] or \[B, H, W\]"),
        ((64, 128, 2), np.uint8, r"maps of 8x8 pixels at least, not \[64, 128, 2\]"),
        ((1, 1025, 2048), np.uint8, "2099200 pixels, and a request may have 2097152; send fewer or smaller maps"),
        ((17, 256, 512), np.uint8, "2228224 pixels"),
    ],
)
def test_other_types_and_ranks_are_refused(model: Any, shape: tuple[int, ...], dtype: type, message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        model.predict(np.full(shape, 7, dtype=dtype))


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

"""A generator as an MLflow model: config, safetensors, code and a receipt; no pickle, no need of this package."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import safetensors.torch
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec
from mlflow.types.schema import Object, Property

import dpgan.models
from dpgan.errors import UserError, some
from dpgan.files import file_sha256
from dpgan.labels import Card
from dpgan.models.generators import Generator, build_generator

_SERVING = Path(__file__).with_name("serving.py")
_REQUIREMENTS = ("torch", "numpy", "safetensors", "mlflow")
_WEIGHTS, _CONFIG, _RECEIPT = "generator.safetensors", "config.json", "artifacts/receipt.json"
_DIGEST, _SIGNATURE = "digest", "receipt_sha256"  # tags of logged models and of versions
_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Package:
    """What a model is made of. `weights` is the state dict of the generator that is served (the EMA).

    `facts` say how it came to be; with the hashes of all files they are its receipt. `files` are stored with it.
    """

    weights: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of weights and config: the identity of the model, which a new report of it does not change."""
        return hashlib.sha256(self.weights_bytes + self.config_bytes).hexdigest()

    def generator(self) -> Generator:
        """The generator itself, in eval mode."""
        generator = build_generator(**self.config["generator"])
        generator.load_state_dict(dict(self.weights))
        return generator.eval()

    @property
    def weights_bytes(self) -> bytes:
        """The weights as safetensors."""
        return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in self.weights.items()})

    @property
    def config_bytes(self) -> bytes:
        """The config as JSON."""
        return json.dumps(self.config, sort_keys=True, indent=1).encode()


def generator_config(card: Card, generator: Mapping[str, Any], data_hash: str) -> dict[str, Any]:
    """What the packaged generator must know: its arguments, and the dataset's ids, names and colours."""
    return {
        "generator": dict(generator),
        "dataset": card.name,
        "data_hash": data_hash,
        "size": list(card.size),
        "id_table": card.id_table.tolist(),
        "classes": [info.name for info in card.classes],
        "palette": card.palette.tolist(),
    }


@contextmanager
def using(uri: str) -> Iterator[None]:
    """Sets the global URI that MLflow logs, registers and downloads models at, and puts it back.

    MLflow writes it to the environment too.
    """
    before = os.environ.get(_URI)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ[_URI] = before


def package(uri: str, run_id: str, content: Package) -> LoggedModel:
    """Logs the model to the run; the same content in the same run is logged once."""
    client = MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models(
        [experiment],
        # The status is asked here: on PostgreSQL MLflow 3.17 compares its number with the word, and fails.
        filter_string=f"source_run_id = '{run_id}' AND tags.{_DIGEST} = '{content.digest}'",
    )
    for model in logged:
        if model.status == LoggedModelStatus.READY:
            return model
    with using(uri), tempfile.TemporaryDirectory() as name:
        # Made first: MLflow alone would put the model into the default experiment, below the current folder.
        model = client.create_logged_model(
            experiment, name="model", source_run_id=run_id, tags={_DIGEST: content.digest}
        )
        folder = _write_model(Path(name), content, Model(run_id=run_id, model_id=model.model_id))
        signature = _write_receipt(folder, content)
        client.log_model_artifacts(model.model_id, str(folder))
        client.set_logged_model_tags(model.model_id, {_SIGNATURE: signature})
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _write_model(aside: Path, content: Package, identity: Model) -> Path:
    """The folder of the MLflow model, all but its receipt, made in `aside`."""
    weights, config, folder = aside / _WEIGHTS, aside / _CONFIG, aside / "model"
    weights.write_bytes(content.weights_bytes)
    config.write_bytes(content.config_bytes)
    known = [str(i) for i, index in enumerate(content.config["id_table"]) if index >= 0]
    seeds = Object([Property(label, DataType.long, required=False) for label in known])
    mlflow.pyfunc.save_model(
        str(folder),
        mlflow_model=identity,
        python_model=str(_SERVING),
        model_config={"precision": "fp32"},
        artifacts={path.stem: str(path) for path in (weights, config, *content.files)},
        code_paths=[str(_generator_code(aside))],
        pip_requirements=[f"{needed}=={version(needed)}" for needed in _REQUIREMENTS],
        # No input schema: a tensor spec would fix the rank, and one map is as good as a batch.
        input_example=(np.full(content.config["size"], int(known[0]), np.uint8), {"seed": 0}),
        signature=ModelSignature(
            params=ParamSchema([ParamSpec("seed", "long", np.int64(0)), ParamSpec("noise", seeds, {})])
        ),
    )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return folder


def _write_receipt(folder: Path, content: Package) -> str:
    """Writes the receipt of the model in `folder`, with the hashes of all its files; the receipt's own hash."""
    receipt = {
        **content.facts,
        "verdict": "in the tags `verdict` and `reasons` of the model version",
        "sha256": _hashes(folder),
    }
    path = folder / _RECEIPT
    path.write_text(json.dumps(receipt, sort_keys=True, indent=1) + "\n")
    return file_sha256(path)


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a model, by its path in the folder; but for the receipt, and for a note that MLflow adds
    when it downloads a version."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name not in (_RECEIPT, "registered_model_meta")}


def _generator_code(folder: Path) -> Path:
    """The generators' code as the package `dpgan_generator`, copied from dpgan/models."""
    code = folder / "dpgan_generator"
    code.mkdir()
    (code / "__init__.py").touch()
    source = Path(dpgan.models.__path__[0])
    shutil.copy(source / "layers.py", code)
    shutil.copytree(source / "generators", code / "generators", ignore=shutil.ignore_patterns("__pycache__"))
    return code


def register(uri: str, name: str, run_id: str, content: Package) -> int:
    """The version number of the content in registered model `name`; registered where it is not yet."""
    client = MlflowClient(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'"):
        if found.tags.get(_DIGEST) == content.digest:
            return int(found.version)
    model = package(uri, run_id, content)
    tags = {key: model.tags[key] for key in (_DIGEST, _SIGNATURE)}
    with using(uri):
        made = client.create_model_version(name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id)
    return int(made.version)


def load_files(uri: str, name: str, number: int) -> Package:
    """Weights, config and receipt of a registered version. UserError if they are not what was registered, or gone."""
    client = MlflowClient(uri)
    tags = client.get_model_version(name, str(number)).tags
    with using(uri), tempfile.TemporaryDirectory() as local:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}", dst_path=local))
        if not _hashes(folder):  # MLflow downloads what is not there as an empty folder
            where = client.get_model_version_download_uri(name, str(number))
            raise UserError(
                f"{name} version {number}: its files are not in {where}; restore that folder from a backup, or go back "
                "to another version"
            )
        altered = _altered(folder, tags)
        if altered:
            raise UserError(
                f"{name} version {number}: changed since it was registered: {some(altered)}; do not use this "
                "version: go back to another one, or register it again from its run"
            )
        weights, config = folder / "artifacts" / _WEIGHTS, folder / "artifacts" / _CONFIG
        receipt = json.loads((folder / _RECEIPT).read_bytes()) if _SIGNATURE in tags else {}
        return Package(safetensors.torch.load_file(weights), json.loads(config.read_bytes()), receipt)


def _altered(folder: Path, tags: Mapping[str, str]) -> list[str]:
    """Files of a model that are missing, additional, or not those that were registered: the tag signs the receipt, and
    the receipt all other files. In older versions it signs the artifacts alone, and the oldest have only a digest."""
    found = _hashes(folder)
    if _SIGNATURE not in tags:
        files = [folder / "artifacts" / name for name in (_WEIGHTS, _CONFIG)]
        content = b"".join(path.read_bytes() for path in files if path.is_file())
        return [] if hashlib.sha256(content).hexdigest() == tags[_DIGEST] else [_WEIGHTS, _CONFIG]
    receipt = folder / _RECEIPT
    if not receipt.is_file() or file_sha256(receipt) != tags[_SIGNATURE]:
        return [_RECEIPT]
    signed: dict[str, str] = json.loads(receipt.read_bytes())["sha256"]
    if "MLmodel" not in signed:
        signed = {f"artifacts/{name}": sha for name, sha in signed.items()}
        found = {name: sha for name, sha in found.items() if name in signed}
    return sorted(name for name in found.keys() | signed.keys() if found.get(name) != signed.get(name))

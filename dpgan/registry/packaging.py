"""A generator as an MLflow model: config, safetensors and code, no pickle, no need of this package."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import safetensors.torch
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec

import dpgan.models
from dpgan.labels import Card

_SERVING = Path(__file__).with_name("serving.py")
_REQUIREMENTS = ("torch", "numpy", "safetensors", "mlflow")
_WEIGHTS, _CONFIG = "generator.safetensors", "config.json"
_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Package:
    """What a model is made of. `weights` is the state dict of the generator that is served (the EMA)."""

    weights: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """sha256 of weights and config: the identity of the model."""
        return hashlib.sha256(self.weights_bytes + self.config_bytes).hexdigest()

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


def package(uri: str, run_id: str, content: Package) -> str:
    """Logs the model to the run and returns its URI; the same content in the same run is logged once."""
    client = MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models(
        [experiment],
        # The status is asked here: on PostgreSQL MLflow 3.17 compares its number with the word, and fails.
        filter_string=f"source_run_id = '{run_id}' AND tags.digest = '{content.digest}'",
    )
    for model in logged:
        if model.status == LoggedModelStatus.READY:
            return str(model.model_uri)
    with using(uri), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known_id = int(np.argmax(np.array(content.config["id_table"]) >= 0))
        (folder / _WEIGHTS).write_bytes(content.weights_bytes)
        (folder / _CONFIG).write_bytes(content.config_bytes)
        # Made first: `log` alone would put the model into the default experiment, below the current folder.
        model = client.create_logged_model(
            experiment, name="model", source_run_id=run_id, tags={"digest": content.digest}
        )
        info = Model.log(
            artifact_path=None,  # its old name, which the signature still asks for
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(_SERVING),
            artifacts={"generator": str(folder / _WEIGHTS), "config": str(folder / _CONFIG)},
            code_paths=[str(_generator_code(folder))],
            pip_requirements=[f"{needed}=={version(needed)}" for needed in _REQUIREMENTS],
            # No input schema: a tensor spec would fix the rank, and one map is as good as a batch.
            input_example=(np.full(content.config["size"], known_id, np.uint8), {"seed": 0}),
            signature=ModelSignature(params=ParamSchema([ParamSpec("seed", "long", np.int64(0))])),
        )
    return str(info.model_uri)


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
        if found.tags.get("digest") == content.digest:
            return int(found.version)
    source = package(uri, run_id, content)
    with using(uri):
        made = client.create_model_version(name, source, run_id=run_id, tags={"digest": content.digest})
    return int(made.version)


def load_files(uri: str, name: str, number: int) -> Package:
    """Weights and config of a registered version, checked against its digest."""
    with using(uri), tempfile.TemporaryDirectory() as folder:
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}", dst_path=folder))
        weights = safetensors.torch.load((local / "artifacts" / _WEIGHTS).read_bytes())
        content = Package(weights, json.loads((local / "artifacts" / _CONFIG).read_bytes()))
    expected = MlflowClient(uri).get_model_version(name, str(number)).tags["digest"]
    if content.digest != expected:
        raise ValueError(f"{name} version {number}: its files have changed since it was registered")
    return content

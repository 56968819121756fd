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
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec
from mlflow.types.schema import Object, Property

import dpgan.models
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.labels import Card
from dpgan.models.generators import Generator, build_generator

_SERVING = Path(__file__).with_name("serving.py")
_REQUIREMENTS = ("torch", "numpy", "safetensors", "mlflow")
_WEIGHTS, _CONFIG, _RECEIPT = "generator.safetensors", "config.json", "receipt.json"
_DIGEST, _SIGNATURE = "digest", "receipt_sha256"  # tags of logged models and of versions
_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Package:
    """What a model is made of. `weights` is the state dict of the generator that is served (the EMA).

    `facts` say how it came to be; with the hashes of the other files they are its receipt. `files` lie beside it.
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
        folder = Path(name)
        known = [str(i) for i, index in enumerate(content.config["id_table"]) if index >= 0]
        seeds = Object([Property(label, DataType.long, required=False) for label in known])
        artifacts = _write_artifacts(folder, content)
        # Made first: `log` alone would put the model into the default experiment, below the current folder.
        model = client.create_logged_model(
            experiment,
            name="model",
            source_run_id=run_id,
            tags={_DIGEST: content.digest, _SIGNATURE: file_sha256(folder / _RECEIPT)},
        )
        Model.log(
            artifact_path=None,  # its old name, which the signature still asks for
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(_SERVING),
            model_config={"precision": "fp32"},
            artifacts=artifacts,
            code_paths=[str(_generator_code(folder))],
            pip_requirements=[f"{needed}=={version(needed)}" for needed in _REQUIREMENTS],
            # No input schema: a tensor spec would fix the rank, and one map is as good as a batch.
            input_example=(np.full(content.config["size"], int(known[0]), np.uint8), {"seed": 0}),
            signature=ModelSignature(
                params=ParamSchema([ParamSpec("seed", "long", np.int64(0)), ParamSpec("noise", seeds, {})])
            ),
        )
    return model


def _write_artifacts(folder: Path, content: Package) -> dict[str, str]:
    """Writes the files of the model, the receipt last, which holds the hashes of the others; paths by name."""
    (folder / _WEIGHTS).write_bytes(content.weights_bytes)
    (folder / _CONFIG).write_bytes(content.config_bytes)
    paths = [folder / _WEIGHTS, folder / _CONFIG, *content.files]
    receipt = {
        **content.facts,
        "verdict": "in the tags `verdict` and `reasons` of the model version",
        "sha256": {path.name: file_sha256(path) for path in paths},
    }
    (folder / _RECEIPT).write_text(json.dumps(receipt, sort_keys=True, indent=1) + "\n")
    return {path.stem: str(path) for path in [*paths, folder / _RECEIPT]}


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
    """Weights, config and receipt of a registered version. UserError where they are not what was registered."""
    tags = MlflowClient(uri).get_model_version(name, str(number)).tags
    with using(uri), tempfile.TemporaryDirectory() as folder:
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}", dst_path=folder)) / "artifacts"
        altered = _altered(local, tags)
        if altered:
            raise UserError(
                f"{name} version {number}: changed since it was registered: {', '.join(altered)}; do not use this "
                "version: go back to another one, or register it again from its run"
            )
        weights, config = safetensors.torch.load_file(local / _WEIGHTS), json.loads((local / _CONFIG).read_bytes())
        receipt = json.loads((local / _RECEIPT).read_bytes()) if _SIGNATURE in tags else {}
    return Package(weights, config, receipt)


def _altered(folder: Path, tags: Mapping[str, str]) -> list[str]:
    """Names of the artifacts that are missing or not those that were registered: the tag signs the receipt, and the
    receipt the other files. Versions from before there were receipts have the digest alone."""
    if _SIGNATURE not in tags:
        content = b"".join((folder / name).read_bytes() for name in (_WEIGHTS, _CONFIG))
        return [] if hashlib.sha256(content).hexdigest() == tags[_DIGEST] else [_WEIGHTS, _CONFIG]

    def differ(hashes: Mapping[str, str]) -> list[str]:
        return [n for n, sha in hashes.items() if not (folder / n).is_file() or file_sha256(folder / n) != sha]

    return differ({_RECEIPT: tags[_SIGNATURE]}) or differ(json.loads((folder / _RECEIPT).read_bytes())["sha256"])

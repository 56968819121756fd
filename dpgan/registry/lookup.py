"""The generator that a name stands for: a version of the registry, a training of ours, or a file of anybody's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from dpgan.config import TrainSettings
from dpgan.data import order
from dpgan.data.prepare import Split
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.labels import Card
from dpgan.models.ema import recollect_statistics
from dpgan.models.files import import_network
from dpgan.models.generators import Generator, build_generator
from dpgan.registry.packaging import load_files
from dpgan.registry.tracking import open_store
from dpgan.registry.versions import Versions
from dpgan.training.checkpoint import MANIFEST, load_state
from dpgan.training.loop import STATISTICS_IMAGES

REGISTERED = re.compile(r"(?:models:/)?([^/@]+)(?:/(\d+)|@([\w-]+))")  # NAME/VERSION, NAME@ALIAS
FORMS = (
    "a model is models:/NAME/VERSION, models:/NAME@ALIAS, a folder of a training (build/train, or a checkpoint below "
    "runs/), or a file (.safetensors, .pth)"
)


@dataclass(frozen=True)
class Found:
    """A generator in eval mode, and where it is from."""

    generator: Generator
    facts: Mapping[str, str]


def find_generator(name: str, card: Card, root: Path, train: Callable[[], Split]) -> Found:
    """The generator that `name` stands for, which must paint the classes of `card`.

    A checkpoint of a training that goes on holds averaged weights without BatchNorm statistics of their own: they are
    collected over label maps of `train`, as training does before it evaluates. UserError where there is no such model,
    where it cannot be read, or where it was trained on other classes.
    """
    path, registered = root / name, REGISTERED.fullmatch(name)
    if registered and (name.startswith("models:/") or not path.exists()):
        return _registered(registered, card, root)
    if path.is_dir():
        return _trained(path, "best", card, train)
    if path.is_file() and (path.parent / MANIFEST).is_file() and path.suffix == ".safetensors":
        return _trained(path.parent, path.stem, card, train)
    if not path.exists():
        raise UserError(f"{name}: no such file or folder; {FORMS}")
    network = import_network(path)
    if not isinstance(network.module, Generator):
        raise UserError(f"{name} is a {network.role}; only generators paint")
    _check_count(name, network.arguments["num_classes"], card)
    return Found(network.module.eval(), {"model": name, "sha256": file_sha256(path)})


def _registered(named: re.Match[str], card: Card, root: Path) -> Found:
    model, version, alias = named.groups()
    uri = open_store(root)
    versions = Versions(uri, model)
    if not versions.all():
        known = ", ".join(found.name for found in MlflowClient(uri).search_registered_models()) or "none"
        raise UserError(f"{model}: no such model in the registry of {uri}; it has: {known}. Or else: {FORMS}")
    number = versions.find(version or alias)
    content = load_files(uri, model, number)
    classes = [info.name for info in card.classes]
    if content.config["classes"] != classes:
        own = content.config["dataset"]
        raise UserError(
            f"{model} version {number} paints the classes of {own}, and data/{card.name}/dataset.yaml has others: add "
            f"--dataset {own}"
        )
    return Found(content.generator(), {"model": f"{model} version {number}", "sha256": content.digest, "registry": uri})


def _trained(folder: Path, weights: str, card: Card, train: Callable[[], Split]) -> Found:
    """Of build/train, or of a checkpoint."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no {MANIFEST}, so it is no training of ours; {FORMS}") from None
    checkpoint = "trains" in manifest
    if checkpoint:
        weights, whose = "average", manifest["trains"]["card"]
        if whose != card.digest:
            raise UserError(f"{folder}: trained on another dataset, or another version of its card, than {card.name}")
    settings = TrainSettings.model_validate((manifest["trains"] if checkpoint else manifest)["settings"])
    generator = build_generator(**settings.generator_arguments(card.num_classes))
    path = folder / f"{weights}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        load_state(generator, path)
    except RuntimeError:  # torch names every key
        raise UserError(f"{path}: not a generator for the {card.num_classes} classes of {card.name}") from None
    if checkpoint:
        _collect_statistics(generator, train())
    return Found(generator.eval(), {"model": str(path), "sha256": file_sha256(path)})


def _collect_statistics(generator: Generator, train: Split, batch: int = 16) -> None:
    rows = range(min(STATISTICS_IMAGES, len(train.ids)))
    recollect_statistics(
        generator,
        (
            (torch.tensor(train.labels[start : min(start + batch, len(rows))]),
             torch.from_numpy(order.noise_at(0, rows[start : start + batch], generator.noise_channels)))
            for start in range(0, len(rows), batch)
        ),
    )  # fmt: skip


def _check_count(name: str, classes: int, card: Card) -> None:
    if classes != card.num_classes:
        raise UserError(
            f"{name} knows {classes} classes, data/{card.name}/dataset.yaml has {card.num_classes}; name the dataset "
            "that it was trained on: --dataset NAME"
        )

"""dpgan.registry.lookup: what a model may be called, and what is said where it is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_card
from mlflow import MlflowClient
from safetensors.torch import save_file
from test_official import TINY, official
from test_official import generator as random_generator

from dpgan.data.prepare import Split, open_prepared
from dpgan.errors import UserError
from dpgan.models.files import Network, save_network
from dpgan.models.generators import Generator
from dpgan.registry.lookup import find_generator
from dpgan.registry.packaging import Package, generator_config, register
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run
from dpgan.training.checkpoint import save_state

CARD = tiny_card()
SETTINGS = {"preset": "toyscapes", "images": 8, "batch": 4, "generator_width": 1, "pyramid_width": 2,
            "noise_channels": 64}  # fmt: skip
ARGUMENTS = {"kind": "dp", "num_classes": CARD.num_classes, "noise_channels": 64, "width": 1, "pyramid_width": 2,
             "concat_s0": True}  # fmt: skip


@dataclass
class Place:
    root: Path
    train: Split
    generator: Generator

    def find(self, name: str) -> tuple[Generator, dict[str, str]]:
        found = find_generator(name, CARD, self.root, lambda: self.train)
        assert not found.generator.training
        return found.generator, dict(found.facts)

    def fails(self, name: str) -> str:
        with pytest.raises(UserError) as error:
            self.find(name)
        return str(error.value)

    def paints_alike(self, name: str) -> None:
        labels, noise = torch.tensor(self.train.labels[:2]), torch.ones(2, 64)
        with torch.no_grad():
            torch.testing.assert_close(self.find(name)[0](labels, noise), self.generator(labels, noise))


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    generator = random_generator("dp", **ARGUMENTS)
    return Place(tmp_path, open_prepared(tiny, "train"), generator)


def write_manifest(folder: Path, **content: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_a_training_of_ours(place: Place) -> None:
    folder = write_manifest(place.root / "build/train", settings=SETTINGS)
    save_state(place.generator, folder / "best.safetensors")
    place.paints_alike("build/train")
    place.paints_alike("build/train/best.safetensors")
    assert place.find("build/train")[1]["model"].endswith("build/train/best.safetensors")
    assert "last.safetensors: no such file" in place.fails("build/train/last.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "best.safetensors")
    assert f"not a generator for the {CARD.num_classes} classes of toyscapes" in place.fails("build/train")


def test_a_checkpoint_gets_statistics_of_its_own(place: Place) -> None:
    trains = {"settings": SETTINGS, "card": CARD.digest}
    folder = write_manifest(place.root / "runs/x/checkpoints/images_000000008", trains=trains)
    save_state(place.generator, folder / "average.safetensors")
    name = str(folder.relative_to(place.root))
    found, _ = place.find(name)
    before, after = place.generator.state_dict(), found.state_dict()
    assert torch.equal(before["to_rgb.weight"], after["to_rgb.weight"])
    moved = [key for key in before if key.endswith("running_mean") and not torch.equal(before[key], after[key])]
    assert moved
    (folder / "manifest.json").write_text(json.dumps({"trains": {**trains, "card": "of another"}}))
    assert "another version of its card" in place.fails(name)


def test_files_of_anybody(place: Place) -> None:
    torch.save(official(place.generator), place.root / "official.pth")
    place.paints_alike("official.pth")
    save_network(Network("generator", ARGUMENTS, place.generator), place.root / "ours.safetensors")
    place.paints_alike("ours.safetensors")
    torch.save(official(random_generator("dp", **TINY["dp"])), place.root / "other.pth")
    assert f"other.pth knows 5 classes, data/toyscapes/dataset.yaml has {CARD.num_classes}" in place.fails("other.pth")
    assert "nowhere.pth: no such file or folder; a model is models:/NAME/VERSION" in place.fails("nowhere.pth")
    (place.root / "empty").mkdir()
    assert "empty: holds no manifest.json" in place.fails("empty")


def test_a_version_of_the_registry(place: Place) -> None:
    uri = tracking_uri(place.root)
    assert "dpgan-toyscapes: no such model in the registry" in place.fails("models:/dpgan-toyscapes/1")
    run = open_run(place.root, "toyscapes", "run", {}, {})
    config = generator_config(CARD, ARGUMENTS, "data")
    register(uri, "dpgan-toyscapes", run, Package(place.generator.state_dict(), config))
    place.paints_alike("models:/dpgan-toyscapes/1")
    assert "unknown version '2'" in place.fails("models:/dpgan-toyscapes/2")
    assert "unknown version 'champion'" in place.fails("dpgan-toyscapes@champion")
    MlflowClient(uri).set_registered_model_alias("dpgan-toyscapes", "champion", "1")
    place.paints_alike("dpgan-toyscapes@champion")
    assert place.find("models:/dpgan-toyscapes@champion")[1]["model"] == "dpgan-toyscapes version 1"
    others = {**config, "classes": ["sky", "sea"], "dataset": "coast"}
    register(uri, "dpgan-coast", run, Package(place.generator.state_dict(), others))
    assert "dpgan-coast version 1 paints the classes of coast" in (said := place.fails("models:/dpgan-coast/1"))
    assert said.endswith("add --dataset coast")

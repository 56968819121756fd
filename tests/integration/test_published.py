"""Cityscapes, ADE20K and COCO-Stuff as they are published, made from toyscapes pixels: from raw folder to registry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from published_layouts import WRITERS, Counts

from dpgan.data.prepare import open_prepared
from dpgan.labels import load_card
from integration.conftest import Project, make_clone

SIZES = {"cityscapes": ("[256, 512]", "[32, 64]"), "ade20k": ("[256, 256]", "[64, 64]"),
         "coco-stuff": ("[256, 256]", "[64, 64]")}  # fmt: skip


def project_of(name: str, folder: Path) -> Project:
    """A clone that is pointed to the unzipped folder."""
    raw = WRITERS[name](folder / "unzipped", Counts(train=32, val=8))
    project = make_clone(folder / "project")
    project.edit(f"data/{name}/dataset.yaml", *(f"size: {size}" for size in SIZES[name]))
    project.edit("params.yaml", "dataset: toyscapes", f"dataset: {name}")
    project.edit("params.yaml", "raw: data/toyscapes/raw", f"raw: {raw}")
    project.commit(f"train on {name}")
    return project


@pytest.mark.parametrize("name", list(WRITERS))
def test_the_unzipped_folder_is_prepared(name: str, tmp_path: Path) -> None:
    project = project_of(name, tmp_path)
    assert "40 pairs, 0 left out" in project.run("dvc", "repro", "prepare")
    card = load_card(name, project.root / "data")
    train = open_prepared(project.root / "build/prepared", "train")
    present = {card.classes[i].name for i in np.unique(train.labels)}
    assert {"road", "car", "person"} <= present


def test_all_183_classes_go_to_the_registry(tmp_path: Path) -> None:
    project = project_of("coco-stuff", tmp_path)
    project.run("dvc", "repro")
    promotion = json.loads((project.root / "build/promotion.json").read_text())
    assert (promotion["model"], promotion["version"]) == ("dpgan-coco-stuff", 1)
    scores = json.loads((project.root / "build/scores.json").read_text())
    assert scores["n"] == 8
    assert scores["ceiling"]["fid_lite0"] < scores["floor"]["fid_lite0"]
    assert scores["finite_last"]

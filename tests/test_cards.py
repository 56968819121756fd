"""The cards in data/: their facts, and that folders as published fit them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan.data.index import scan
from dpgan.data.validation import validate
from dpgan.errors import UserError
from dpgan.labels import known_datasets, load_card
from dpgan.presets import PRESETS

DATA = ROOT / "data"
COUNTS = Counts(train=9, val=8)


@pytest.mark.parametrize(
    ("name", "classes", "scored", "void"),
    [
        ("cityscapes", 35, 19, {"unlabeled", "license plate"}),
        ("ade20k", 151, 150, {"unknown"}),
        ("ade20k-outdoor", 151, 150, {"unknown"}),
        ("coco-stuff", 183, 171, {"unlabeled"}),
        ("camvid", 12, 11, {"void"}),
        ("toyscapes", 35, 19, {"unlabeled", "license plate"}),
    ],
)
def test_class_counts(name: str, classes: int, scored: int, void: set[str]) -> None:
    card = load_card(name, DATA)
    assert (card.num_classes, len(card.evaluated)) == (classes, scored)
    assert {info.name for info in card.classes if info.void} == void
    assert card.preset in PRESETS


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("cityscapes", {7: "road", 23: "sky", 33: "bicycle"}),
        ("ade20k", {0: "unknown", 1: "wall", 3: "sky", 14: "earth", 21: "car", 150: "flag"}),
        ("coco-stuff", {0: "person", 11: "street sign", 156: "sky-other", 181: "wood", 255: "unlabeled"}),
    ],
)
def test_ids_are_the_publishers(name: str, ids: dict[int, str]) -> None:
    card = load_card(name, DATA)
    assert {id_: card.classes[card.id_table[id_]].name for id_ in ids} == ids


def test_outdoor_is_ade20k_but_for_the_selection() -> None:
    whole, outdoor = load_card("ade20k", DATA), load_card("ade20k-outdoor", DATA)
    same = whole.model_dump().keys() - {"name", "title", "preset", "select"}
    assert whole.model_dump(include=same) == outdoor.model_dump(include=same)


@pytest.mark.parametrize("name", known_datasets(DATA))
def test_every_card_has_a_readme_that_says_where_from(name: str) -> None:
    text = (DATA / name / "README.md").read_text()
    assert "icence" in text
    assert f"dataset: {name}" in text or load_card(name, DATA).toyscapes


@pytest.mark.parametrize("name", WRITERS)
def test_the_published_layout_fits(name: str, tmp_path: Path) -> None:
    raw = WRITERS[name](tmp_path, COUNTS, size=(32, 64))
    card = load_card(name, DATA)
    frame = scan(card, raw, workers=1)
    assert frame["split"].value_counts().to_dict() == COUNTS._asdict()
    assert frame["instance"].notna().all() == (name == "cityscapes")
    report = validate(frame, card)
    assert report.of("error") == []
    assert report.quarantined == {}


def test_outdoor_scenes_are_selected(tmp_path: Path) -> None:
    raw = WRITERS["ade20k"](tmp_path, Counts(train=3, val=1), size=(32, 64))
    card = load_card("ade20k-outdoor", DATA)
    ids = {info.name: info.id for info in card.classes}
    for number, classes in ((0, ["wall", "floor"]), (1, ["sky", "bed"]), (2, ["mountain", "tree"])):
        label = np.full((32, 64), ids[classes[0]], np.uint8)
        label[:16] = ids[classes[1]]
        Image.fromarray(label).save(raw / f"annotations/training/ADE_train_{number:08d}.png")
    (raw / "annotations/validation/ADE_val_00000003.png").write_bytes(b"")  # nobody knows: it stays, for validate
    assert list(scan(card, raw, workers=1)["sample_id"]) == ["train/train_00000002", "val/val_00000003"]


@pytest.mark.parametrize(
    ("name", "path", "edition"),
    [
        ("ade20k", "images/training/a/abbey/ADE_train_00000970_seg.png", "the full edition"),
        ("cityscapes", "gtCoarse/train/aachen/aachen_000000_000019_gtCoarse_labelIds.png", "the coarse annotations"),
        ("coco-stuff", "annotations/COCO_train2014_000000000077.mat", "COCO-Stuff 10K"),
    ],
)
def test_another_edition_is_refused_by_name(name: str, path: str, edition: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(UserError, match=f"{edition}.*data/{name}/README.md says which one to get"):
        scan(load_card(name, DATA), tmp_path, workers=1)

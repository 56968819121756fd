"""dpgan.data.propose.arrange and .splits: common layouts are found, and every pair gets its split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from folders import make
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan.data.layout import find_pairs
from dpgan.data.propose import propose
from dpgan.data.propose.arrange import take_apart
from dpgan.errors import UserError
from dpgan.labels import load_card

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("path", "pattern", "split", "id_"),
    [
        ("images/train/1.jpg", "images/{split}/{id}.jpg", "train", "1"),
        ("train/images/1.jpg", "{split}/images/{id}.jpg", "train", "1"),
        ("trainannot/1.png", "{split}annot/{id}.png", "train", "1"),
        ("val_masks/mask_12.png", "{split}_masks/mask_{id}.png", "val", "12"),
        ("gtFine/val/bonn/b_1_gtFine_labelIds.png", "gtFine/{split}/{id}_gtFine_labelIds.png", "val", "bonn/b_1"),
        ("images/train2017/0001.jpg", "images/{split}/{id}.jpg", "train2017", "0001"),
        ("Images/Validation/a-b.c.JPG", "Images/{split}/{id}.JPG", "Validation", "a-b.c"),
        ("train_007_mask.png", "{split}_{id}_mask.png", "train", "007"),
        ("city/0001_mask.png", "{id}_mask.png", "", "city/0001"),
        ("images/trainval/1.jpg", "images/{split}/{id}.jpg", "trainval", "1"),
        ("trainstation.jpg", "{id}.jpg", "", "trainstation"),
        ("constrained/mask.png", "{id}.png", "", "constrained/mask"),
    ],
)
def test_take_apart(path: str, pattern: str, split: str, id_: str) -> None:
    assert take_apart(path) == (pattern, split, id_)


@pytest.mark.parametrize(
    ("image", "label", "splits"),
    [
        ("images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "val")),
        ("{split}/images/{id}.jpg", "{split}/labels/{id}.png", ("training", "validation")),
        ("{split}/{id}.png", "{split}annot/{id}.png", ("train", "test")),
        ("photos/{split}/{id}_rgb.png", "gt/{split}/{id}_gt.png", ("train", "val")),
        ("rgb/{split}/img_{id}.png", "seg/{split}/mask_{id}.png", ("train", "val")),
        ("{split}/{id}.jpg", "{split}/{id}.png", ("train", "val")),
        ("{split}_{id}.png", "{split}_{id}_mask.png", ("train", "val")),
    ],
)
def test_layouts_with_a_split(image: str, label: str, splits: tuple[str, str], tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, image, label, splits), "mine")
    card = proposal.card
    assert (card.layout.image, card.layout.label, card.layout.ids) == (image, label, None)
    assert card.splits == dict(zip(("train", "val"), splits, strict=True))
    assert proposal.suspicious == []
    assert proposal.lists == {}
    pairs = find_pairs(card, tmp_path)
    assert [pair.split for pair in pairs] == ["train"] * 10 + ["val"] * 8
    assert not any(pair.missing for pair in pairs)


@pytest.mark.parametrize(
    ("image", "label"),
    [("{id}.jpg", "{id}_mask.png"), ("A/{id}.jpg", "B/{id}.png"), ("images/{id}.png", "masks/{id}.png")],
)
def test_a_folder_without_a_split_gets_the_same_lists_every_time(image: str, label: str, tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, image, label, counts=(40, 60)), "mine")
    assert (proposal.card.layout.image, proposal.card.layout.label) == (image, label)
    assert proposal.card.layout.ids == "splits/{split}.txt"
    train, val = proposal.lists["splits/train.txt"], proposal.lists["splits/val.txt"]
    assert (len(train), len(val)) == (90, 10)
    assert sorted([*train, *val]) == [f"{i:03d}" for i in range(100)]
    assert propose(tmp_path, "mine").lists == proposal.lists
    assert "There is no split: 10 of 100 pairs were drawn" in proposal.suspicious[0]


def test_a_single_split_folder_is_a_folder_without_a_split(tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, "train/images/{id}.png", "train/labels/{id}.png"), "mine")
    assert proposal.card.layout.image == "train/images/{id}.png"
    assert len(proposal.lists["splits/val.txt"]) == 8


def test_lists_in_the_folder_are_its_split(tmp_path: Path) -> None:
    make(tmp_path, "JPEGImages/{id}.jpg", "SegmentationClass/{id}.png")
    (tmp_path / "ImageSets").mkdir()
    for name, numbers in (("train", range(9)), ("val", range(9, 18)), ("trainval", range(18))):
        (tmp_path / f"ImageSets/{name}.txt").write_text("".join(f"{i:03d}\n" for i in numbers))
    proposal = propose(tmp_path, "mine")
    assert proposal.card.layout.ids == "ImageSets/{split}.txt"
    assert proposal.lists == {}
    assert [pair.split for pair in find_pairs(proposal.card, tmp_path)] == ["train"] * 9 + ["val"] * 9


def test_label_maps_in_one_folder_take_the_photos_split(tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, "images/{split}/{id}.jpg", "labels/{id}.png"), "mine")
    assert proposal.lists["splits/val.txt"] == [f"{i:03d}" for i in range(10, 18)]
    assert proposal.suspicious == []


def test_test_is_left_alone_where_there_is_val(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "val"))
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("test", "test"))
    proposal = propose(tmp_path, "mine")
    assert proposal.card.splits == {"train": "train", "val": "val"}
    assert "test (18 pairs) is not used." in proposal.found


def test_photos_without_any_label_map_are_no_split(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "test"), counts=(20, 8))
    shutil.rmtree(tmp_path / "labels/test")
    proposal = propose(tmp_path, "mine")
    assert "test holds no pair, and is not used." in proposal.found
    assert proposal.card.layout.image == "images/train/{id}.jpg"
    assert len(proposal.lists["splits/val.txt"]) == 8


@pytest.mark.parametrize("name", WRITERS)
def test_published_layouts_are_found_without_their_cards(name: str, tmp_path: Path) -> None:
    proposal = propose(WRITERS[name](tmp_path, Counts(9, 8), size=(32, 64)), "mine")
    card = load_card(name, ROOT / "data")
    assert proposal.card.layout.model_dump() == card.layout.model_dump() | (
        {key: getattr(card.layout, key).replace("ADE_", "") for key in ("image", "label")} if name == "ade20k" else {}
    )
    assert proposal.card.splits == card.splits


def test_splits_that_nobody_knows(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("val", "test"))
    with pytest.raises(UserError, match=r"the splits are called test, val; .* name their folders train and val"):
        propose(tmp_path, "mine")


@pytest.mark.parametrize("line", ["{}.png", "images/{}.jpg", "/data/set/images/{}.jpg /data/set/labels/{}.png", "{} "])
def test_lists_of_files_are_the_split(line: str, tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.jpg", "labels/{id}.png")
    for name, numbers in (("train", range(10)), ("val", range(10, 18))):
        (tmp_path / f"{name}.txt").write_text("".join(line.replace("{}", f"{i:03d}") + "\r\n" for i in numbers))
    proposal = propose(tmp_path, "mine")
    for path, ids in proposal.lists.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("\n".join(ids) + "\n")
    pairs = find_pairs(proposal.card, tmp_path)
    assert [(pair.split, pair.id) for pair in pairs] == [("train" if i < 10 else "val", f"{i:03d}") for i in range(18)]


@pytest.mark.parametrize(
    ("names", "says"), [(("train", "val"), "18 lines of 18 name no pair"), (("train",), "none for the other")]
)
def test_lists_that_cannot_be_the_split_are_refused(names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.jpg", "labels/{id}.png")
    prefix = "x" if len(names) == 2 else ""
    for name in names:
        (tmp_path / f"{name}.txt").write_text("".join(f"{prefix}{i:03d}\n" for i in range(18)))
    with pytest.raises(UserError, match=says):
        propose(tmp_path, "mine")


def test_names_with_spaces_survive_lists(tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.jpg", "labels/{id}.png")
    for old, new in (("003", " lead"), ("004", "trail "), ("005", "a, b\t c")):
        (tmp_path / f"images/{old}.jpg").rename(tmp_path / f"images/{new}.jpg")
        (tmp_path / f"labels/{old}.png").rename(tmp_path / f"labels/{new}.png")
    proposal = propose(tmp_path, "mine")
    (tmp_path / "splits").mkdir()
    for path, ids in proposal.lists.items():
        (tmp_path / path).write_text("\n".join(ids) + "\n")
    pairs = find_pairs(proposal.card, tmp_path)
    assert {" lead", "trail ", "a, b\t c"} < {pair.id for pair in pairs}
    assert not any(pair.missing for pair in pairs)


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.jpg", "labels/{id}.png")
    (tmp_path / "images/003.jpg").rename(tmp_path / "images/0\n3.jpg")
    with pytest.raises(UserError, match=r"1 name has a line break .*'images/0\\n3\.jpg'"):
        propose(tmp_path, "mine")


def test_names_count_more_than_flatness(tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.png", "labels/{id}.png")
    for path in tmp_path.glob("images/*.png"):
        Image.new("RGB", (96, 48), (9, 9, int(path.stem))).save(path)
    for path in tmp_path.glob("labels/*.png"):
        Image.fromarray((np.indices((48, 96)).sum(0) // 8 % 3).astype(np.uint8)).save(path)
    proposal = propose(tmp_path, "mine")
    assert (proposal.card.layout.image, proposal.card.layout.label) == ("images/{id}.png", "labels/{id}.png")
    assert any("The label maps are less flat than the photos" in line for line in proposal.suspicious)
    (tmp_path / "images").rename(tmp_path / "A")
    with pytest.raises(UserError, match="which are the label maps is not sure"):
        propose(tmp_path, "mine")


def test_link_loops_and_tiny_images_are_named(tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.png", "labels/{id}.png")
    (tmp_path / "images/loop").symlink_to("..")
    with pytest.raises(UserError, match=r"images/loop/?: a link loop: it leads back"):
        propose(tmp_path, "mine")
    (tmp_path / "images/loop").unlink()
    for path in tmp_path.glob("*/*.png"):
        Image.open(path).resize((1, 1)).save(path)
    with pytest.raises(UserError, match="the images are 1x1 at most, too small to be photos"):
        propose(tmp_path, "mine")


def test_pairs_by_number_are_proposed(tmp_path: Path) -> None:
    make(tmp_path, "images/{id}.png", "labels/{id}.png")
    for i in range(18):
        (tmp_path / f"images/{i:03d}.png").rename(tmp_path / f"images/{i}.png")
    for i in range(18):
        (tmp_path / f"labels/{i:03d}.png").rename(tmp_path / f"labels/{i:04d}.png")
    with pytest.raises(UserError, match=r"match one to one \(18 pairs: images/0\.png with labels/0000\.png"):
        propose(tmp_path, "mine")

"""dpgan.data.layout: which files make a pair, and what is said where none does."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_pairs import make_card, make_raw

from dpgan.data.layout import find_pairs, walk
from dpgan.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    return root


def paired(raw: Path, **layout: str) -> list[tuple[str, str | None, str | None]]:
    return [(f"{p.split}/{p.id}", p.image, p.label) for p in find_pairs(make_card(layout=layout), raw)]


def test_what_archivers_and_desktops_hide_is_no_file(tmp_path: Path) -> None:
    put(tmp_path, "b/2.png", "a.png", ".DS_Store", "b/._2.png", "__MACOSX/b/2.png", ".git/x.png")
    assert list(walk(tmp_path)) == ["a.png", "b/2.png"]


def test_a_file_belongs_to_the_longest_pattern_it_fits(tmp_path: Path) -> None:
    put(tmp_path, *(f"{s}/{i}{end}.png" for s in ("train", "test") for i in (1, 2) for end in ("", "_mask")))
    pairs = paired(tmp_path, image="{split}/{id}.png", label="{split}/{id}_mask.png")
    assert pairs == [
        (f"{role}/{i}", f"{folder}/{i}.png", f"{folder}/{i}_mask.png")
        for role, folder in (("train", "train"), ("val", "test"))
        for i in (1, 2)
    ]


def test_lists_part_the_pairs(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{i}.{end}" for kind, end in (("photos", "jpg"), ("masks", "png")) for i in "abcd"))
    put(tmp_path, "sets/train.txt", "sets/test.txt")
    (tmp_path / "sets/train.txt").write_text("c\n a \n\nc\n")
    (tmp_path / "sets/test.txt").write_text("b\r\nnowhere\r\n")
    layout = {"image": "photos/{id}.jpg", "label": "masks/{id}.png", "ids": "sets/{split}.txt"}
    assert [id_ for id_, *_ in paired(tmp_path, **layout)] == ["train/a", "train/c", "val/b", "val/nowhere"]
    lost = find_pairs(make_card(layout=layout), tmp_path)[-1]
    assert lost.missing == "sets/test.txt: lists nowhere, of which there is neither photo nor label map"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    put(tmp_path, "1.jpg", "1.png")
    if content is not None:
        (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(
        UserError, match=r"train\.txt: (no such file|not a text file in UTF-8 .*); it must hold the ids of train"
    ):
        paired(tmp_path, image="{id}.jpg", label="{id}.png", ids="{split}.txt")


@pytest.mark.parametrize("below", ["", "images", "images/train"])
def test_a_raw_folder_one_level_off_is_named(tmp_path: Path, below: str) -> None:
    raw = make_raw(tmp_path / "download/raw")
    given = raw / below if below else raw.parent
    with pytest.raises(UserError, match=r"but files of .*/download/raw do: set `raw` in params\.yaml to that folder"):
        find_pairs(make_card(), given)


def test_another_edition_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a/ADE_train_1.jpg", "images/training/a/ADE_train_1_seg.png")
    card = make_card(other_editions={"ADE_*_seg.png": "the full edition"})
    with pytest.raises(UserError, match="this is the full edition, another edition than the card of tiny describes"):
        find_pairs(card, tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file fits 'images/train/\{id\}\.png'.*found no file at all"):
        find_pairs(make_card(), tmp_path)

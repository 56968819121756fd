"""dpgan.data.diff: what changed between two versions of a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data.diff import describe, diff
from dpgan.data.index import scan

pytestmark = pytest.mark.filterwarnings("error")


def test_added_removed_moved_altered(tmp_path: Path) -> None:
    card, raw = make_card(), make_raw(tmp_path / "raw", train=4)
    before = scan(card, raw, workers=1)
    for kind in ("images", "labels"):
        (raw / f"{kind}/train/0.png").unlink()
        (raw / f"{kind}/train/1.png").rename(raw / f"{kind}/test/moved.png")
        shutil.copy(raw / f"{kind}/train/2.png", raw / f"{kind}/train/9.png")
    Image.new("RGB", (96, 48)).save(raw / "images/train/9.png")
    Image.new("L", (96, 48), 7).save(raw / "labels/train/2.png")
    Image.new("RGB", (96, 48), 9).save(raw / "images/train/3.png")
    Image.new("L", (96, 48), 7).save(raw / "labels/train/3.png")
    changes = diff(before, scan(card, raw, workers=1), card)
    assert (changes.added, changes.removed) == (["train/9"], ["train/0"])
    assert changes.moved == {"train/1": "val/moved"}
    assert changes.altered == {"train/2": "label map", "train/3": "photo and label map"}
    lines = describe(changes)
    assert "      1 moved" in lines
    assert "          train/1 -> val/moved" in lines
    assert "      2 altered" in lines


def test_classes_that_shift_most_come_first(tmp_path: Path) -> None:
    card, raw = make_card(), make_raw(tmp_path / "raw", train=2)
    before = scan(card, raw, workers=1)
    for name in ("0", "1"):
        label = np.zeros((48, 96), np.uint8)
        label[0, :48] = 255
        Image.fromarray(label).save(raw / f"labels/train/{name}.png")
    changes = diff(before, scan(card, raw, workers=1), card)
    train = [shift for shift in changes.shifts if shift.split == "train"]
    assert [shift.name for shift in train] == ["road", "sky", "void"]
    assert train[0].after == 0
    assert sum(shift.before for shift in train) == pytest.approx(1)
    assert all(shift.before == shift.after for shift in changes.shifts if shift.split == "val")
    assert any("road" in line and "-> 0.000%" in line for line in describe(changes))


def test_how_files_are_stored_does_not_count(tmp_path: Path) -> None:
    card, raw = make_card(), make_raw(tmp_path / "raw")
    before = scan(card, raw, workers=1)
    for path in raw.glob("images/*/*.png"):
        Image.open(path).save(path, compress_level=0)
    changes = diff(before, scan(card, raw, workers=1), card)
    assert changes.same
    assert describe(changes) == ["the same pairs, pixel by pixel"]


def test_a_pair_that_cannot_be_read_is_altered_once(tmp_path: Path) -> None:
    card, raw = make_card(), make_raw(tmp_path / "raw")
    (raw / "labels/train/0.png").unlink()
    before = scan(card, raw, workers=1)
    assert diff(before, before, card).same
    Image.new("L", (96, 48), 7).save(raw / "labels/train/0.png")
    assert diff(before, scan(card, raw, workers=1), card).altered == {"train/0": "label map"}

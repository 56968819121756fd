"""dpgan.data.validation: every fault is found, named with its file, and nothing else is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.config import quiet_environment
from dpgan.data.index import scan
from dpgan.errors import UserError
from dpgan.labels import Card

quiet_environment()  # before great_expectations is imported

from dpgan.data.validation import facts, raise_on_errors, suite, validate, write_report  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def found(raw: Path, card: Card | None = None) -> dict[str, list[str]]:
    """Details by expectation of a scanned raw folder."""
    card = card or make_card()
    return {f.expectation: f.details for f in validate(scan(card, raw, workers=1), card)}


def edit_label(path: Path, change: Callable[[np.ndarray], object]) -> None:
    label = np.array(Image.open(path))
    change(label)
    Image.fromarray(label).save(path)


def test_clean_pairs_have_no_findings(
    raw: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert found(raw) == {}
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert caplog.records == []
    raise_on_errors([])


def test_faults_of_the_index_are_told(raw: Path) -> None:
    (raw / "labels/train/1.png").unlink()
    (raw / "images/test/0.png").write_bytes(b"x")
    assert found(raw) == {
        "files are whole and paired": [
            "images/train/1.png: has no label map (expected labels/train/1.png)",
            "images/test/0.png: cannot be decoded: not an image file",
        ]
    }


def test_sizes_differ(raw: Path) -> None:
    path = raw / "labels/train/1.png"
    Image.open(path).crop((0, 0, 90, 48)).save(path)
    assert found(raw) == {
        "photo and label map have one size": ["images/train/1.png is 96x48, labels/train/1.png is 90x48"]
    }


def test_unknown_ids_with_their_pixels(raw: Path) -> None:
    def draw(label: np.ndarray) -> None:
        label[0, 1:4] = 3
        label[1, :2] = 200

    edit_label(raw / "labels/test/1.png", draw)
    assert found(raw) == {"label ids are in the card": ["labels/test/1.png: id 3 (3 pixels), id 200 (2 pixels)"]}


def test_all_void(raw: Path) -> None:
    edit_label(raw / "labels/train/2.png", lambda label: label.fill(255))
    assert found(raw)["label maps are not all void"] == ["labels/train/2.png: every pixel is void"]


def test_one_class_is_a_warning(raw: Path) -> None:
    edit_label(raw / "labels/train/2.png", lambda label: label.fill(7))
    assert found(raw) == {"label maps hold several classes": ["labels/train/2.png: one class only"]}


def test_too_few_pairs(raw: Path) -> None:
    assert found(raw, make_card(min_pairs=3)) == {"val has enough pairs": ["val (test): 2 pairs, 3 at least"]}


def test_photo_in_both_splits(raw: Path) -> None:
    Image.open(raw / "images/train/1.png").save(raw / "images/test/0.png", compress_level=0)
    assert found(raw) == {
        "no photo is in both splits": [
            "images/train/1.png = images/test/0.png",
            "images/test/0.png = images/train/1.png",
        ]
    }


def test_photo_twice_in_a_split_is_a_warning(raw: Path) -> None:
    Image.open(raw / "images/train/1.png").save(raw / "images/train/2.png", compress_level=0)
    assert found(raw) == {"no photo stands twice in a split": ["images/train/2.png = images/train/1.png"]}


def test_class_that_training_lacks_is_a_warning(raw: Path) -> None:
    for path in (raw / "labels/train").iterdir():
        edit_label(path, lambda label: np.place(label, label == 7, 255))
    details = found(raw)["training has every class of val"]
    assert details == ["labels/test/0.png: road", "labels/test/1.png: road"]


@pytest.mark.parametrize(("size", "stretched"), [((32, 64), False), ((64, 64), True), ((32, 96), True)])
def test_stretched_photos_are_a_warning(raw: Path, size: tuple[int, int], stretched: bool) -> None:
    details = found(raw, make_card(size=size)).get("resizing keeps the shape of photos", [])
    assert len(details) == (5 if stretched else 0)
    assert all("96x48" in detail for detail in details)


def test_decoder_complaints_are_a_warning(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 96 - 1)
    assert len(found(raw)["files decode without a complaint"]) == 5


def test_every_check_can_tell_a_pair(raw: Path) -> None:
    """The texts of the suite name only what a row of facts, or a table-wide result, holds."""
    card = make_card()
    row = facts(scan(card, raw, workers=1), card).to_dict("records")[0]
    for check in suite(card):
        assert check.tells.format(**row, observed_value=0)
        assert check.reason.endswith(".")
        assert check.remedy.endswith(".")


def test_errors_name_files_and_remedies_and_warnings_pass(raw: Path) -> None:
    edit_label(raw / "labels/train/0.png", lambda label: label.fill(7))
    card = make_card()
    raise_on_errors(validate(scan(card, raw, workers=1), card))  # a warning only
    for i in range(3, 10):
        Image.new("RGB", (96, 48)).save(raw / f"labels/train/{i}.png")
    with pytest.raises(UserError) as error:
        raise_on_errors(validate(scan(card, raw, workers=1), card))
    message = str(error.value)
    assert "not met: files are whole and paired (7x)" in message
    assert "labels/train/3.png: label map has mode RGB" in message
    assert "and 2 more" in message
    assert "Restore the file from the source" in message
    assert "several classes" not in message


def test_report_needs_no_network_and_holds_every_finding(raw: Path, tmp_path: Path) -> None:
    Image.open(raw / "images/train/1.png").save(raw / "images/test/0.png")
    card = make_card(title="Tiny <b>&")
    frame = scan(card, raw, workers=1)
    write_report(validate(frame, card), frame, card, tmp_path / "validate")
    content = json.loads((tmp_path / "validate/findings.json").read_text())
    assert content["pairs"] == {"train": 3, "val": 2}
    assert content["findings"][0]["samples"] == ["train/1", "val/0"]
    assert content["findings"][0]["severity"] == "error"
    page = (tmp_path / "validate/report.html").read_text()
    assert "images/train/1.png = images/test/0.png" in page
    assert "Tiny &lt;b&gt;&amp;" in page
    assert "http" not in page.replace("<!doctype html>", "")
    road = sum(24 * 96 - 96 * i for i in range(3)) / (3 * 48 * 96)
    assert f"{road:.3%}" in page


def test_twenty_thousand_pairs_take_seconds(raw: Path) -> None:
    frame = scan(make_card(), raw, workers=1)
    many = pd.concat([frame] * 4000, ignore_index=True)
    many["sample_id"] = [f"{split}/{i}" for i, split in enumerate(many["split"])]
    many["image_sha256"] = many["sample_id"]
    assert validate(many, make_card()) == []

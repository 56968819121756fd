"""dpgan.data.scan: what the index says of one pair, and the raw ids that prepare reads."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import ExifTags, Image
from raw_pairs import make_card, make_raw

from dpgan.data.decode import decode_ids
from dpgan.data.layout import find_pairs
from dpgan.data.scan import GREY, SCHEMA, ramps, scan_pair
from dpgan.labels import Card

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def row_of(raw: Path, sample_id: str = "train/1", card: Card | None = None) -> dict[str, Any]:
    """The row of a pair, as the index holds it."""
    card = card or make_card()
    rows = [scan_pair(card.label_format, raw, pair) for pair in find_pairs(card, raw)]
    return {row["sample_id"]: row for row in pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()}[sample_id]


def test_a_clean_pair(raw: Path) -> None:
    row = row_of(raw)
    faults = ["missing", "broken", "image_fault", "label_fault", "instance_fault", "unknown_colors", "note"]
    assert {row[name] for name in faults} == {None}
    assert (row["image_width"], row["image_height"], row["image_mode"], row["image_bits"]) == (96, 48, "RGB", 8)
    assert (row["label_width"], row["label_height"], row["label_mode"], row["label_bits"]) == (96, 48, "L", 8)
    assert {i: n for i, n in enumerate(row["histogram"]) if n} == {0: 25 * 96 - 1, 7: 23 * 96, 255: 1}
    label = np.array(Image.open(raw / "labels/train/1.png"))
    assert row["label_sha256"] == hashlib.sha256(b"96x48 " + label.tobytes()).hexdigest()
    assert row["image_orientation"] is None
    assert row["ramps"] == 0


def test_a_row_is_a_function_of_the_pixels(raw: Path) -> None:
    before = row_of(raw)
    for kind in ("images", "labels"):
        path = raw / f"{kind}/train/1.png"
        Image.open(path).save(path, compress_level=0)
    assert row_of(raw) == before
    assert pickle.loads(pickle.dumps(before)) == before


def test_difference_hash_and_grey_thumbnail(raw: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], (48, 96, 3))
    Image.fromarray(ramp).save(raw / "images/train/1.png")
    Image.fromarray(ramp[:, ::-1]).save(raw / "images/train/2.png")
    brighter, darker = (row_of(raw, name) for name in ("train/1", "train/2"))
    assert brighter["image_dhash"] == "f" * 16
    assert darker["image_dhash"] == "0" * 16
    thumbnail = np.frombuffer(bytes.fromhex(brighter["image_grey"]), np.uint8).reshape(GREY, GREY)
    np.testing.assert_allclose(thumbnail[3], ramp[0, :, 0].reshape(GREY, -1).mean(axis=1), atol=1)


def test_a_photo_of_one_channel_is_hashed_as_rgb(raw: Path) -> None:
    grey = Image.open(raw / "images/train/1.png").convert("L")
    grey.save(raw / "images/train/1.png")
    row = row_of(raw)
    grey.convert("RGB").save(raw / "images/train/1.png")
    assert row["image_mode"] == "L"
    assert row["image_sha256"] == row_of(raw)["image_sha256"]


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("name", ["1.jpg", "1.png"])
def test_orientation(raw: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = raw / "images/train/1.png"
    image = Image.open(path)
    image.load()
    image.save(path.with_name(name), exif=exif)
    path.with_name(name).replace(path)
    assert row_of(raw)["image_orientation"] == orientation


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"]
)
def test_exif_that_nobody_can_read(raw: Path, exif: bytes) -> None:
    path = raw / "images/train/1.png"
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), exif=exif)
    path.with_suffix(".jpg").replace(path)
    row = row_of(raw)
    assert row["image_orientation"] is None
    assert row["image_sha256"] is not None


@pytest.mark.parametrize(("kind", "missing"), [("images", "photo"), ("labels", "label map")])
def test_missing_partner(raw: Path, kind: str, missing: str) -> None:
    (raw / f"{kind}/train/1.png").unlink()
    row = row_of(raw)
    assert f"has no {missing} (expected {kind}/train/1.png)" in row["missing"]
    assert row["broken"] is None


def test_what_cannot_be_decoded_is_told_of_both_files(raw: Path) -> None:
    (raw / "images/train/1.png").write_bytes(b"")
    path = raw / "labels/train/1.png"
    path.write_bytes(path.read_bytes()[:-40])
    row = row_of(raw)
    assert row["broken"].startswith("images/train/1.png: cannot be decoded: not an image file; labels/train/1.png: ")
    assert row["image_sha256"] is row["label_sha256"] is row["histogram"] is None


def test_decoder_complaints_become_notes(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 96 - 1)  # Pillow warns of a decompression bomb
    row = row_of(raw)
    assert row["note"].count("(4608 pixels) exceeds limit") == 2
    assert row["label_sha256"] is not None


def painted(raw: Path, encoding: str) -> Card:
    """A card of this encoding, and label map train/1 in it."""
    card = make_card(encoding=encoding)
    path = raw / "labels/train/1.png"
    label = Image.open(path)
    if encoding == "palette":
        label.putpalette([value for i in range(256) for value in (255 - i, i, 0)])
        label.save(path, bits=8)
    elif encoding == "colors":
        Image.fromarray(card.colorize(card.id_table[np.array(label)])).save(path)
    return card


@pytest.mark.parametrize("encoding", ["palette", "colors"])
def test_every_encoding_gives_the_same_ids(raw: Path, encoding: str) -> None:
    before, ids = row_of(raw), np.array(Image.open(raw / "labels/train/1.png"))
    card = painted(raw, encoding)
    after = row_of(raw, card=card)
    assert after["label_mode"] == {"palette": "P", "colors": "RGB"}[encoding]
    assert after["label_fault"] is None
    for column in ("histogram", "label_sha256", "ramps"):
        assert after[column] == before[column]
    decoded = decode_ids(raw / "labels/train/1.png", card.label_format)
    assert decoded.image is not None
    assert decoded.image.mode == "L"
    np.testing.assert_array_equal(np.asarray(decoded.image), ids)


def test_palettes_of_few_colours_are_stored_in_few_bits(raw: Path) -> None:
    label = np.zeros((48, 96), np.uint8)
    label[30:] = 1
    image = Image.fromarray(label)
    image.putpalette([0, 0, 255, 9, 9, 9])
    image.save(raw / "labels/train/1.png", bits=1)
    row = row_of(raw, card=make_card(encoding="palette"))
    assert (row["label_bits"], row["label_fault"]) == (1, None)
    assert row["histogram"][:2] == [30 * 96, 18 * 96]


def test_a_map_in_another_encoding_has_no_ids(raw: Path) -> None:
    painted(raw, "colors")
    decoded = decode_ids(raw / "labels/train/1.png", make_card().label_format)
    assert decoded.image is None
    assert decoded.fault == row_of(raw)["label_fault"]
    assert "encoding: colors" in str(decoded.fault)
    assert row_of(raw)["histogram"] is None


def test_an_unknown_colour_has_no_class(raw: Path) -> None:
    card = painted(raw, "colors")
    pixels = np.array(Image.open(raw / "labels/train/1.png"))
    for i in range(6):
        pixels[1, : i + 1] = (255, i, 255)
        pixels = np.roll(pixels, 1, axis=0)
    Image.fromarray(pixels).save(raw / "labels/train/1.png")
    told = row_of(raw, card=card)["unknown_colors"]
    assert told == "#ff05ff (6 pixels), #ff04ff (5 pixels), #ff03ff (4 pixels), #ff02ff (3 pixels) and 2 more colours"
    ids = decode_ids(raw / "labels/train/1.png", card.label_format).image
    assert (card.id_table[np.asarray(ids)] < 0).sum() == 1 + 2 + 3 + 4 + 5 + 6


def test_ramps_are_steps_over_a_third_id() -> None:
    stairs = np.tile(np.array([0, 0, 3, 7, 7, 7], np.uint8), (100, 1))
    assert ramps(stairs) == 100 / 200
    assert ramps(stairs[:, ::-1]) == 100 / 200
    thin = np.tile(np.array([0, 0, 9, 7, 7, 7], np.uint8), (100, 1))  # a pole: not between its neighbours
    assert ramps(thin) == 0
    assert ramps(stairs[:8]) == 8 / 64  # 16 steps say little
    assert ramps(np.zeros((5, 1), np.uint8)) == 0


def instances(raw: Path, codes: np.ndarray) -> str | None:
    """The fault of an instance map beside label map train/1, whose lower half is class 7."""
    (raw / "instances/train").mkdir(parents=True, exist_ok=True)
    Image.fromarray(codes).save(raw / "instances/train/1.png")
    layout = {**make_card().layout.model_dump(), "instance": "instances/{split}/{id}.png"}
    return row_of(raw, card=make_card(layout=layout))["instance_fault"]


def test_instance_maps_agree_with_labels(raw: Path) -> None:
    codes = np.array(Image.open(raw / "labels/train/1.png")).astype(np.uint16)
    codes[codes == 7] = 7003
    assert instances(raw, codes) is None
    codes[0, 0] = 8  # void in the label map: nobody cares
    assert instances(raw, codes) is None
    codes[40, 5:8] = 8000
    assert instances(raw, codes) == "3 pixels are of another class than in the label map: 8000 on id 7 at x=5, y=40"
    assert instances(raw, codes[:, :90]) == "is 90x48, its label map 96x48"

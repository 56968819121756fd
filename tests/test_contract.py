"""dpgan.data.contract: the fault table. A clean toyscapes raises nothing; each fault is found, and nothing else is."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import ExifTags, Image

from dpgan.data.contract import Severity, pair_checks, split_checks
from dpgan.data.facts import pair_facts, split_facts, summary
from dpgan.data.index import scan
from dpgan.data.toyscapes import write_dataset
from dpgan.data.validation import validate
from dpgan.labels import Card, Toyscapes, load_card

pytestmark = pytest.mark.filterwarnings("error")

CAMVID = Path(os.environ.get("DPGAN_CAMVID", ROOT.parent / "shared/data/camvid"))
SIZE = (64, 128)
PHOTO, LABEL, INSTANCE = (f"{kind}/train/000003.png" for kind in ("images", "labels", "instances"))
VAL_PHOTO = "images/val/000026.png"


def make_card(**changes: Any) -> Card:
    card = load_card("toyscapes", ROOT / "data")
    recipe = Toyscapes(train=24, val=8, size=SIZE, seed=0)
    return Card.model_validate({**card.model_dump(), "toyscapes": recipe, **changes})


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "raw"
    write_dataset(make_card(), folder, workers=1)
    return folder


@pytest.fixture
def raw(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "raw")
    return tmp_path / "raw"


# What is done to the files. A label map is changed together with its instance map, so that the two agree.


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def relabel(change: Callable[[np.ndarray], np.ndarray], label: str = LABEL) -> Callable[[Path], None]:
    def inject(raw: Path) -> None:
        ids = change(pixels(raw / label))
        Image.fromarray(ids).save(raw / label)
        Image.fromarray(ids.astype(np.uint16)).save(raw / label.replace("labels", "instances"))

    return inject


def every_label(change: Callable[[np.ndarray], np.ndarray], below: str = "labels") -> Callable[[Path], None]:
    def inject(raw: Path) -> None:
        for path in sorted((raw / below).rglob("*.png")):
            relabel(change, path.relative_to(raw).as_posix())(raw)

    return inject


def save(name: str, change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[Path], None]:
    def inject(raw: Path) -> None:
        image = Image.open(raw / name)
        image.load()
        change(image).save(raw / name, **options)

    return inject


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_bytes(change((raw / name).read_bytes())) and None


def as_jpeg(name: str, change: Callable[[bytes], bytes] = lambda data: data, **options: Any) -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_bytes(change(jpeg(Image.open(raw / name), **options))) and None


def grey_png(values: np.ndarray, depth: int) -> bytes:
    """A grey PNG of less than 8 bits, which Pillow reads but does not write."""
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :].reshape(len(values), -1)
    return written_png(np.packbits(bits, axis=1), values.shape[1], depth, color=0)


def deep_png(photo: np.ndarray) -> bytes:
    """A photo as a 12-bit camera gives it, in a 16-bit RGB PNG, which Pillow reads but does not write."""
    values = (photo.astype(np.uint16) * 16).astype(">u2")
    return written_png(values.view(np.uint8).reshape(len(photo), -1), photo.shape[1], depth=16, color=2)


def written_png(rows: np.ndarray, width: int, depth: int, color: int) -> bytes:
    """A PNG of rows of bytes, uint8 [H, bytes]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def palette(image: Image.Image) -> Image.Image:
    image.putpalette([value for i in range(256) for value in (255 - i, i, 0)])
    return image


def smooth(scale: float, how: Image.Resampling) -> Callable[[np.ndarray], np.ndarray]:
    """Resized there and back, the way back smoothly."""

    def change(ids: np.ndarray) -> np.ndarray:
        image = Image.fromarray(ids)
        small = image.resize((round(SIZE[1] * scale), round(SIZE[0] * scale)), Image.Resampling.NEAREST)
        return np.clip(np.array(small.resize(image.size, how)), 0, 33)

    return change


def draw(id_: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(ids: np.ndarray) -> np.ndarray:
        ids[0, :count] = id_
        return ids

    return change


def train_ids(ids: np.ndarray) -> np.ndarray:
    card = make_card()
    table = np.full(256, 255, np.uint8)
    table[[card.classes[i].id for i in card.evaluated]] = np.arange(len(card.evaluated))
    return table[ids]


def turned(raw: Path, name: str = PHOTO) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.open(raw / name)
    image.load()
    image.save(raw / name, exif=exif)


def copied(source: str, target: str, change: Callable[[Image.Image], bytes] | None = None) -> Callable[[Path], None]:
    def inject(raw: Path) -> None:
        data = (raw / source).read_bytes()
        (raw / target).write_bytes(change(Image.open(raw / source)) if change else data)

    return inject


def extra(raw: Path) -> None:
    for kind in ("labels", "instances"):
        shutil.copy(raw / f"{kind}/train/000003.png", raw / f"{kind}/train/000999.png")


def no_pedestrians_in_training(raw: Path) -> None:
    every_label(lambda ids: np.where(ids == 24, 11, ids), "labels/train")(raw)


class Fault(NamedTuple):
    """A fault, the expectation that is not met for it, and what its details say."""

    name: str
    inject: Callable[[Path], object]
    expectation: str
    told: str
    severity: Severity = "error"
    count: int = 1
    card: dict[str, Any] = {}  # noqa: RUF012


WHOLE, HOLD = "files can be decoded", "label maps hold ids"
FAULTS = [
    Fault("no label map", lambda raw: (raw / LABEL).unlink(), "files are paired",
          f"{PHOTO}: has no label map (expected {LABEL})"),
    Fault("no photo", lambda raw: (raw / PHOTO).unlink(), "files are paired", f"{LABEL}: has no photo"),
    Fault("extra label map", extra, "files are paired", "labels/train/000999.png: has no photo"),
    Fault("no instance map", lambda raw: (raw / INSTANCE).unlink(), "every pair has its instance map",
          f"{LABEL}: no instance map", "warning"),
    Fault("sizes differ", save(PHOTO, lambda image: image.crop((0, 0, 120, 64))), "photo and label map have one size",
          f"{PHOTO} is 120x64, {LABEL} is 128x64"),
    Fault("grey label map saved as RGB", save(LABEL, lambda image: image.convert("RGB")), HOLD,
          f"{LABEL}: is grey, saved as RGB"),
    Fault("RGB label map", save(LABEL, lambda image: palette(image).convert("RGB")), HOLD,
          f"{LABEL}: has mode RGB, where `encoding: ids` of the card means L; set `encoding: colors`"),
    Fault("palette label map", save(LABEL, palette), HOLD, "set `encoding: palette` in the card if all are"),
    Fault("grey label map, palette expected", lambda raw: None, "label maps hold palette",
          "labels/train/000000.png: has mode L", count=32, card={"encoding": "palette"}),
    Fault("16-bit label map", save(LABEL, lambda image: Image.fromarray(np.array(image).astype(np.uint16))), HOLD,
          "is 16-bit grey"),
    Fault("1-bit label map", save(LABEL, lambda image: image.point(lambda id_: 255 * (id_ > 7), "1")), HOLD,
          "is 1-bit grey"),
    Fault("4-bit label map", lambda raw: (raw / LABEL).write_bytes(grey_png(pixels(raw / LABEL) % 16, 4)), HOLD,
          "is 4-bit grey"),
    Fault("label map with alpha", save(LABEL, lambda image: image.convert("LA")), HOLD, "has an alpha channel"),
    Fault("RGBA label map", save(LABEL, lambda image: image.convert("RGBA")), HOLD, "has an alpha channel"),
    Fault("JPEG label map", as_jpeg(LABEL, quality=95), HOLD, f"{LABEL}: is a JPEG"),
    Fault("16-bit photo", save(PHOTO, lambda image: Image.fromarray(np.array(image.convert("L")).astype(np.uint16))),
          "photos have 8 bits per channel", f"{PHOTO}: has mode I;16"),
    Fault("12-bit photo in 16-bit RGB", lambda raw: (raw / PHOTO).write_bytes(deep_png(pixels(raw / PHOTO))),
          "photos have 8 bits per channel", f"{PHOTO}: is 16-bit RGB"),
    Fault("rotated label map", lambda raw: turned(raw, LABEL), "label maps are stored upright",
          f"{LABEL}: EXIF orientation 6"),
    Fault("rotated photo", turned, "photos are stored upright", f"{PHOTO}: EXIF orientation 6"),
    Fault("unknown ids", relabel(draw(200, 5)), "labels are in the card", f"{LABEL}: id 200 (5 pixels)"),
    Fault("ids less one", relabel(lambda ids: draw(255, 9)(ids - 1)),
          "labels are in the card", "like ids less one, where 255 is what the card calls 0",
          card={"classes": [c.model_dump() for c in make_card().classes if c.id != 255]}),
    Fault("trainIds", every_label(train_ids), "label maps are not of trainIds",
          "train (train): ids are 0 to 18 and 255 only", count=2),
    Fault("bilinear upscaling", relabel(smooth(0.5, Image.Resampling.BILINEAR)), "label maps are not smoothed", LABEL),
    Fault("Lanczos upscaling", relabel(smooth(0.7, Image.Resampling.LANCZOS)), "label maps are not smoothed", LABEL),
    Fault("all void", relabel(np.zeros_like), "label maps are not all void", f"{LABEL}: every pixel is void"),
    Fault("one class", relabel(lambda ids: np.full_like(ids, 7)), "label maps hold several classes", LABEL, "warning"),
    Fault("truncated PNG photo", rewrite(PHOTO, lambda data: data[: len(data) // 2]), WHOLE, f"{PHOTO}: cannot be"),
    Fault("truncated PNG label map", rewrite(LABEL, lambda data: data[:-40]), WHOLE, f"{LABEL}: cannot be decoded"),
    Fault("corrupt PNG", rewrite(PHOTO, lambda data: data[:5000] + b"\0" * 99 + data[5099:]), WHOLE, PHOTO),
    Fault("truncated JPEG", as_jpeg(PHOTO, lambda data: data[: len(data) // 2], quality=95), WHOLE, "truncated"),
    Fault("corrupt JPEG", as_jpeg(PHOTO, lambda data: data[:200] + b"\xff" * 300 + data[500:]), WHOLE, PHOTO),
    Fault("JPEG with a lost sector", as_jpeg(PHOTO, lambda data: data[:2000] + bytes(512) + data[2512:], quality=95),
          "files decode without a complaint", f"{PHOTO}: 512 zero bytes in a row", "warning"),
    Fault("not an image", rewrite(PHOTO, lambda data: b"<html>404</html>"), WHOLE, f"{PHOTO}: cannot be decoded: not"),
    Fault("empty file", rewrite(LABEL, lambda data: b""), WHOLE, LABEL),
    Fault("instance map of another photo", copied("instances/train/000005.png", INSTANCE),
          "instance maps agree with label maps", f"{INSTANCE}: "),
    Fault("instance map of another size", save(INSTANCE, lambda image: image.crop((0, 0, 100, 64))),
          "instance maps agree with label maps", f"{INSTANCE}: is 100x64, its label map 128x64"),
    Fault("corrupt instance map", rewrite(INSTANCE, lambda data: data[:-40]), "instance maps agree with label maps",
          f"{INSTANCE}: cannot be decoded"),
    Fault("validation photo in training", copied(VAL_PHOTO, PHOTO), "no validation photo is in training",
          f"{PHOTO} = {VAL_PHOTO}"),
    Fault("validation photo in training as JPEG", copied(VAL_PHOTO, PHOTO, lambda image: jpeg(image, quality=80)),
          "no validation photo is nearly in training", f"{PHOTO} is nearly {VAL_PHOTO}"),
    Fault("validation photo in training, brighter",
          copied(VAL_PHOTO, PHOTO, lambda image: jpeg(image.point(lambda v: v * 1.15), quality=95)),
          "no validation photo is nearly in training", f"{PHOTO} is nearly {VAL_PHOTO}"),
    Fault("validation photo in training, mirrored",
          copied(VAL_PHOTO, PHOTO, lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=80)),
          "no validation photo is nearly in training", f"{PHOTO} is nearly {VAL_PHOTO}, mirrored"),
    Fault("validation photo in training, mirrored pixel by pixel",
          copied(VAL_PHOTO, PHOTO, lambda image: png(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))),
          "no validation photo is nearly in training", f"{PHOTO} is nearly {VAL_PHOTO}, mirrored"),
    Fault("photo twice in training", copied("images/train/000005.png", "images/train/000009.png"),
          "no photo stands twice in a split", "images/train/000009.png = images/train/000005.png", "warning"),
    Fault("class that training lacks", no_pedestrians_in_training, "training has every class of validation",
          "val (val): person", "warning"),
    Fault("too few pairs", lambda raw: None, "a split has enough pairs", "val (val): 8 pairs, 9 at least",
          card={"min_pairs": 9}),
    Fault("squashed by the card's size", lambda raw: None, "resizing keeps the shape of photos",
          "its height grows 2.00x against its width", "warning", count=32, card={"size": (64, 64)}),
]  # fmt: skip


def test_a_clean_set_raises_nothing(clean: Path) -> None:
    card = make_card()
    frame = scan(card, clean, workers=1)
    report = validate(frame, card, summary(frame, card))
    assert report.findings == []
    assert report.quarantined == {}
    assert report.stops == []


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID} (set DPGAN_CAMVID)")
def test_camvid_raises_nothing() -> None:
    """Frames of a driving car, drawn by hand: no false alarm in 600 pairs."""
    card = load_card("camvid", ROOT / "data")
    frame = scan(card, CAMVID, workers=1)
    report = validate(frame, card, summary(frame, card))
    assert len(frame) == 600
    assert report.findings == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(raw: Path, fault: Fault) -> None:
    fault.inject(raw)
    card = make_card(**fault.card)
    report = validate(scan(card, raw, workers=1), card)
    assert {finding.expectation for finding in report.findings} == {fault.expectation}
    (finding,) = report.findings
    assert fault.told in finding.details[0]
    assert finding.severity == fault.severity
    assert finding.count == len(finding.details) == fault.count
    of_pairs = fault.severity == "error" and fault.expectation not in {check.name for check in split_checks(card)}
    assert set(report.quarantined) == (set(finding.samples) if of_pairs else set())


def test_only_a_full_decode_reveals_the_truncated_jpeg(raw: Path) -> None:
    data = jpeg(Image.open(raw / PHOTO), quality=95)[:-700]
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == SIZE[::-1]
        image.verify()
    (raw / PHOTO).write_bytes(data)
    (finding,) = validate(scan(make_card(), raw, workers=1), make_card()).findings
    assert "cannot be decoded: image file is truncated" in finding.details[0]


def test_colors_of_no_class(raw: Path) -> None:
    """`encoding: colors`: a clean set raises nothing, an unknown colour is told with its pixels."""
    classes = [c.model_dump() for c in make_card().classes]
    for i, info in enumerate(classes):
        info["color"] = (i, 255 - i, 7 * i)
    card = make_card(encoding="colors", classes=classes)
    for path in sorted((raw / "labels").rglob("*.png")):
        Image.fromarray(card.colorize(card.id_table[pixels(path)])).save(path)
    assert validate(scan(card, raw, workers=1), card).findings == []
    painted = pixels(raw / LABEL)
    painted[0, :5], painted[1, :3] = (255, 0, 16), (1, 2, 3)
    Image.fromarray(painted).save(raw / LABEL)
    findings = validate(scan(card, raw, workers=1), card).findings
    told = {finding.expectation: finding.details for finding in findings}
    assert told["labels are in the card"] == [f"{LABEL}: #ff0010 (5 pixels), #010203 (3 pixels)"]
    assert told.keys() == {"labels are in the card", "instance maps agree with label maps"}


@pytest.mark.parametrize(
    ("change", "expectations"),
    [
        (lambda shares: shares, set()),
        (lambda shares: {**shares, "road": shares["road"] + 0.4, "sky": shares["sky"] - 0.1},
         {"class shares are those of the accepted version"}),
        (lambda shares: {**shares, "wall": 0.0}, {"no class came or went since the accepted version"}),
    ],
    ids=["the same", "drifted", "a class that was not there"],
)  # fmt: skip
def test_drift(clean: Path, change: Callable[[dict[str, float]], dict[str, float]], expectations: set[str]) -> None:
    card = make_card()
    frame = scan(card, clean, workers=1)
    accepted = summary(frame, card)
    accepted["shares"]["train"] = change(accepted["shares"]["train"])
    findings = validate(frame, card, accepted).findings
    assert {finding.expectation for finding in findings} == expectations
    assert all(finding.severity == "warning" and finding.samples == ["train"] for finding in findings)
    if "class shares are those of the accepted version" in expectations:
        assert "of the pixels changed their class" in findings[0].details[0]
        assert "most: road" in findings[0].details[0]


def test_dark_photos_are_not_alike_for_being_dark(raw: Path) -> None:
    """Two photos of a few lights in the dark: nearly the same difference hash, nothing in common."""
    for seed, path in enumerate((raw / PHOTO, raw / VAL_PHOTO)):
        dark = np.zeros((*SIZE, 3), np.uint8)
        y, x = random.Random(seed).randrange(20, 40), random.Random(seed).randrange(8, 100)
        dark[y : y + 6, x : x + 6] = 255
        Image.fromarray(dark).save(path)
    frame = scan(make_card(), raw, workers=1)
    hashes = frame.set_index("sample_id")["image_dhash"]
    differing = int(hashes["train/000003"], 16) ^ int(hashes["val/000026"], 16)
    assert differing.bit_count() <= 4
    assert validate(frame, make_card()).findings == []


def test_every_check_can_tell_its_row(clean: Path) -> None:
    """The texts of the suite name only columns of the facts, and say why and what to do."""
    card = make_card()
    frame = scan(card, clean, workers=1)
    tables: list[tuple[pd.DataFrame, Any]] = [
        (pair_facts(frame, card), pair_checks(card)),
        (split_facts(frame, card, summary(frame, card)), split_checks(card)),
    ]
    for table, checks in tables:
        row = table.to_dict("records")[0]
        assert len({check.name for check in checks}) == len(checks)
        for check in checks:
            assert check.tells.format_map(row)
            assert check.beside is None or check.beside in row
            assert check.reason.endswith(".")
            assert check.remedy.endswith(".")

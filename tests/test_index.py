"""dpgan.data.index: the table, its bytes, and what is scanned again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data import index
from dpgan.data.index import read_index, scan, write_index
from dpgan.data.layout import Pair
from dpgan.data.scan import SCHEMA, scan_pair
from dpgan.errors import UserError
from dpgan.labels import Card, LabelFormat, load_card

pytestmark = pytest.mark.filterwarnings("error")

CAMVID = Path(os.environ.get("DPGAN_CAMVID", Path(__file__).parents[2] / "shared/data/camvid"))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index, "SETTLED", 0)  # files that a test has just written count as old
    return make_raw(tmp_path / "raw")


def test_clean_pairs(raw: Path) -> None:
    frame = scan(make_card(), raw, workers=1)
    assert list(frame.columns) == SCHEMA.names
    assert list(frame["sample_id"]) == ["train/0", "train/1", "train/2", "val/0", "val/1"]
    assert frame[["missing", "broken", "image_fault", "label_fault", "note"]].isna().all(axis=None)
    row = frame.iloc[3]
    assert (row["image"], row["label"], row["instance"]) == ("images/test/0.png", "labels/test/0.png", None)
    assert (row["image_width"], row["image_height"], row["label_mode"]) == (96, 48, "L")
    expected = {0: 24 * 96 - 1, 7: 24 * 96, 255: 1}
    assert {i: n for i, n in enumerate(row["histogram"]) if n} == expected


@pytest.mark.usefixtures("ray_session")
def test_ray_gives_the_same_table_and_progress(raw: Path) -> None:
    steps: list[tuple[int, int]] = []
    frame = scan(make_card(), raw, progress=lambda done, total, *_, **__: steps.append((done, total)), workers=2)
    assert frame.equals(scan(make_card(), raw, workers=1))
    assert steps == [(i, 5) for i in range(6)]


def test_instance_maps_are_paired(raw: Path) -> None:
    (raw / "instances/train").mkdir(parents=True)
    Image.new("L", (96, 48)).save(raw / "instances/train/1.png")
    layout = {**make_card().layout.model_dump(), "instance": "instances/{split}/{id}.png"}
    frame = scan(make_card(layout=layout), raw, workers=1)
    assert list(frame["instance"][:3]) == [None, "instances/train/1.png", None]


def test_hash_is_of_pixels_not_of_bytes(raw: Path) -> None:
    path = raw / "images/train/1.png"
    Image.open(path).save(raw / "images/train/0.png", compress_level=0)
    frame = scan(make_card(), raw, workers=1)
    assert frame["image_sha256"][0] == frame["image_sha256"][1] != frame["image_sha256"][2]
    assert (raw / "images/train/0.png").read_bytes() != path.read_bytes()


def test_index_bytes_are_a_function_of_its_content(raw: Path, tmp_path: Path) -> None:
    (raw / "labels/train/1.png").unlink()
    first, second, again = (tmp_path / f"{i}/index.parquet" for i in range(3))
    frame = scan(make_card(), raw, workers=1)
    write_index(frame, first)
    write_index(scan(make_card(), raw, workers=1), second)
    write_index(read_index(first), again)
    assert first.read_bytes() == second.read_bytes() == again.read_bytes()
    assert read_index(first).equals(frame)
    assert [p.name for p in first.parent.iterdir()] == ["index.parquet"]


def test_only_what_changed_is_scanned_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, scanned = tmp_path / "build/rows.sqlite", list[str]()

    def counted(form: LabelFormat, raw: Path, pair: Pair) -> dict[str, object]:
        scanned.append(f"{pair.split}/{pair.id}")
        return scan_pair(form, raw, pair)

    def again(card: Card) -> list[str]:
        scanned.clear()
        assert scan(card, raw, workers=1, memory=memory).equals(scan_afresh(card))
        return scanned

    def scan_afresh(card: Card) -> pd.DataFrame:
        with monkeypatch.context() as patched:
            patched.setattr(index, "scan_pair", scan_pair)
            return scan(card, raw, workers=1)

    monkeypatch.setattr(index, "scan_pair", counted)
    everything = ["train/0", "train/1", "train/2", "val/0", "val/1"]
    assert again(make_card()) == everything
    assert again(make_card()) == []
    Image.new("L", (96, 48), 7).save(raw / "labels/train/1.png")
    assert again(make_card()) == ["train/1"]
    (raw / "labels/test/0.png").unlink()
    assert again(make_card()) == ["val/0"]
    assert again(make_card(title="Another")) == []
    assert again(make_card(encoding="palette")) == everything, "scanned for another encoding"


def same(scanned: pd.DataFrame, card: Card, raw: Path) -> bool:
    return scanned.equals(scan(card, raw, workers=1))


def test_an_archive_that_restores_size_and_time_is_scanned_again(tmp_path: Path, raw: Path) -> None:
    """BMPs of one size, all with the time that the archive gives: only their contents differ."""
    layout = {"image": "images/{split}/{id}.png", "label": "labels/{split}/{id}.bmp"}
    card, memory = make_card(layout=layout), tmp_path / "rows.sqlite"
    maps = [path.with_suffix(".bmp") for path in sorted(raw.glob("labels/*/*.png"))]
    for path in maps:
        Image.open(path.with_suffix(".png")).save(path)
        os.utime(path, (1e9, 1e9))
    scan(card, raw, workers=1, memory=memory)
    for path in maps:
        Image.fromarray(np.full((48, 96), 7, np.uint8)).save(path)
        os.utime(path, (1e9, 1e9))
    assert same(scan(card, raw, workers=1, memory=memory), card, raw)


def test_files_that_change_places_are_scanned_again(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems whose renames leave the time of status change: the inode tells."""
    card, memory = make_card(), tmp_path / "rows.sqlite"

    def without_times(path: Path) -> os.stat_result:
        found = path.stat()
        return os.stat_result([*found[:6], 999, *[1_000_000_000] * 3])

    monkeypatch.setattr(index, "_stat", without_times)
    scan(card, raw, workers=1, memory=memory)
    one, other, aside = (raw / f"images/train/{name}.png" for name in ("1", "2", "aside"))
    for source, target in ((one, aside), (other, one), (aside, other)):
        source.rename(target)
    assert same(scan(card, raw, workers=1, memory=memory), card, raw)


def test_all_that_scanning_is_given_is_in_its_key(tmp_path: Path, raw: Path) -> None:
    """A class that becomes void may have any code in instance maps: the kept fault must not stay."""
    layout = {**make_card().layout.model_dump(), "instance": "instances/{split}/{id}.png"}
    for path in sorted(raw.glob("labels/*/*.png")):
        out = raw / "instances" / path.relative_to(raw / "labels")
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(np.array(Image.open(path)) == 7, 5, 0).astype(np.uint16)).save(out)
    classes = [info.model_dump() for info in make_card().classes]
    card, memory = make_card(layout=layout, classes=classes), tmp_path / "rows.sqlite"
    frame = scan(card, raw, workers=1, memory=memory)
    assert frame["instance_fault"].notna().all()
    classes[1].update(evaluate=False, void=True)
    card = make_card(layout=layout, classes=classes)
    frame = scan(card, raw, workers=1, memory=memory)
    assert frame["instance_fault"].isna().all()
    assert same(frame, card, raw)


def test_what_was_just_written_is_not_kept(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes within the resolution of its time stamps looks the same."""
    memory = tmp_path / "rows.sqlite"
    monkeypatch.setattr(index, "SETTLED", 60)
    scan(make_card(), raw, workers=1, memory=memory)
    steps: list[int] = []
    scan(make_card(), raw, lambda done, *_, **__: steps.append(done), workers=1, memory=memory)
    assert steps[0] == 0


@pytest.mark.parametrize("change", ["written", "gone"])
def test_files_that_change_while_they_are_read(raw: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    def during(form: LabelFormat, folder: Path, pair: Pair) -> dict[str, object]:
        row, path = scan_pair(form, folder, pair), raw / "images/train/1.png"
        path.unlink(missing_ok=True) if change == "gone" else path.write_bytes(path.read_bytes() + b"more")
        return row

    monkeypatch.setattr(index, "scan_pair", during)
    with pytest.raises(UserError, match="wait until nothing writes into the folder, then run this again"):
        scan(make_card(), raw, workers=1)


def test_an_index_of_an_earlier_version_explains_itself(raw: Path, tmp_path: Path) -> None:
    write_index(scan(make_card(), raw, workers=1), tmp_path / "index.parquet")
    table = pq.read_table(tmp_path / "index.parquet").drop_columns(["instance_sha256"])
    pq.write_table(table, tmp_path / "index.parquet")
    with pytest.raises(UserError, match=r"indexed by another version of dpgan; `dvc repro --force index`"):
        read_index(tmp_path / "index.parquet")


def test_time_left_is_by_pixels(raw: Path) -> None:
    Image.new("RGB", (960, 480)).save(raw / "images/train/1.png")
    calls: list[tuple[int, str, float | None]] = []

    def progress(done: int, total: int, note: str = "", /, *, share: float | None = None) -> None:
        calls.append((done, note, share))

    scan(make_card(), raw, progress, workers=1)
    assert calls[0] == (0, "0 million pixels, 960x480 at most", None)
    assert [share for *_, share in calls[1:]] == pytest.approx([n / 104 for n in (1, 101, 102, 103, 104)])


def test_an_interrupted_scan_goes_on_where_it_was(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, *_: object, **__: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    steps: list[tuple[int, int]] = []
    memory = tmp_path / "rows.sqlite"
    with pytest.raises(KeyboardInterrupt):
        scan(make_card(), raw, interrupt, workers=1, memory=memory)
    frame = scan(make_card(), raw, lambda done, total, *_, **__: steps.append((done, total)), workers=1, memory=memory)
    assert steps == [(3, 5), (4, 5), (5, 5)]
    assert frame.equals(scan(make_card(), raw, workers=1))


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID} (set DPGAN_CAMVID)")
def test_camvid() -> None:
    frame = scan(load_card("camvid", Path(__file__).parents[1] / "data"), CAMVID)
    assert frame["split"].value_counts().to_dict() == {"train": 367, "val": 233}
    assert frame[["missing", "broken", "image_fault", "label_fault"]].isna().all(axis=None)
    assert (frame["image_width"] == 480).all()
    share = np.array(frame["histogram"].to_list()).sum(axis=0) / (600 * 480 * 360)
    assert share[12:].sum() == 0
    assert share[0] == pytest.approx((367 * 0.16845 + 233 * 0.17066) / 600, abs=1e-4)  # sky

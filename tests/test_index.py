"""dpgan.data.index: the table, its bytes, and what is scanned again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data import index
from dpgan.data.index import read_index, scan, write_index
from dpgan.data.layout import Pair
from dpgan.data.scan import SCHEMA, scan_pair
from dpgan.labels import Card, load_card

pytestmark = pytest.mark.filterwarnings("error")

CAMVID = Path(os.environ.get("DPGAN_CAMVID", Path(__file__).parents[2] / "shared/data/camvid"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
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
    frame = scan(make_card(), raw, progress=lambda done, total: steps.append((done, total)), workers=2)
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

    def counted(card: Card, raw: Path, pair: Pair) -> dict[str, object]:
        scanned.append(f"{pair.split}/{pair.id}")
        return scan_pair(card, raw, pair)

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


def test_an_interrupted_scan_goes_on_where_it_was(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    steps: list[tuple[int, int]] = []
    memory = tmp_path / "rows.sqlite"
    with pytest.raises(KeyboardInterrupt):
        scan(make_card(), raw, interrupt, workers=1, memory=memory)
    frame = scan(make_card(), raw, lambda *counts: steps.append(counts), workers=1, memory=memory)
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

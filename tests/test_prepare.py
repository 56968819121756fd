"""dpgan.data.prepare: Pillow's pixels, class indices, and whole or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data import prepare as preparing
from dpgan.data.index import scan, write_index
from dpgan.data.prepare import data_hash, hashes, open_prepared, prepare, resizing
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.labels import Card

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


@pytest.fixture
def frame(raw: Path) -> pd.DataFrame:
    return scan(make_card(), raw, workers=1)


def test_pixels_are_pillows(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    train, val = (open_prepared(tmp_path / "out", split) for split in ("train", "val"))
    assert train.ids == ["train/0", "train/1", "train/2"]
    assert val.ids == ["val/0", "val/1"]
    assert val.images.shape == (2, 32, 64, 3)
    assert val.labels.dtype == np.uint8
    photo = Image.open(raw / "images/test/1.png").resize((64, 32), Image.Resampling.BICUBIC)
    ids = np.array(Image.open(raw / "labels/test/1.png").resize((64, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(val.images[1], np.array(photo))
    np.testing.assert_array_equal(val.labels[1], np.searchsorted([0, 7, 255], ids))
    assert set(np.unique(val.labels)) == {0, 1, 2}


def test_a_photo_of_the_size_is_kept_as_it_is(raw: Path, tmp_path: Path) -> None:
    for path in raw.glob("*/*/*.png"):
        Image.open(path).crop((0, 0, 64, 32)).save(path)
    prepare(scan(make_card(), raw, workers=1), make_card(), raw, tmp_path / "out", workers=1)
    train = open_prepared(tmp_path / "out", "train")
    np.testing.assert_array_equal(train.images[2], np.array(Image.open(raw / "images/train/2.png")))
    assert train.labels[2, 0, 0] == 2  # void, raw id 255


def test_palette_maps_and_grey_photos(raw: Path, tmp_path: Path) -> None:
    label = Image.open(raw / "labels/train/0.png")
    expected = np.searchsorted([0, 7, 255], np.array(label.resize((64, 32), Image.Resampling.NEAREST)))
    for path in raw.glob("labels/*/*.png"):
        palette = Image.open(path)
        palette.putpalette([value for i in range(256) for value in (255 - i, i, 0)])
        palette.save(path)
    grey = Image.open(raw / "images/train/0.png").convert("L")
    grey.save(raw / "images/train/0.png")
    card = make_card(encoding="palette")
    prepare(scan(card, raw, workers=1), card, raw, tmp_path / "out", workers=1)
    train = open_prepared(tmp_path / "out", "train")
    np.testing.assert_array_equal(train.labels[0], expected)
    np.testing.assert_array_equal(train.images[0, ..., 0], np.array(grey.resize((64, 32), Image.Resampling.BICUBIC)))


def test_maps_of_colors(raw: Path, tmp_path: Path) -> None:
    prepare(scan(make_card(), raw, workers=1), make_card(), raw, tmp_path / "ids", workers=1)
    colors = np.zeros((256, 3), np.uint8)
    for info in make_card().classes:
        colors[info.id] = info.color
    for path in raw.glob("labels/*/*.png"):
        Image.fromarray(colors[np.array(Image.open(path))]).save(path)
    card = make_card(encoding="colors")
    prepare(scan(card, raw, workers=1), card, raw, tmp_path / "colors", workers=1)
    for split in ("train", "val"):
        ids, named = (open_prepared(tmp_path / kind, split).labels for kind in ("ids", "colors"))
        np.testing.assert_array_equal(ids, named)


def test_the_quarantine_stays_out(raw: Path, tmp_path: Path) -> None:
    (raw / "labels/train/1.png").unlink()
    frame = scan(make_card(), raw, workers=1)
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1, left_out={"train/1": "no label map"})
    train = open_prepared(tmp_path / "out", "train")
    assert train.ids == ["train/0", "train/2"]
    np.testing.assert_array_equal(
        train.images[1],
        np.array(Image.open(raw / "images/train/2.png").resize((64, 32), Image.Resampling.BICUBIC)),
    )
    before = hashes(tmp_path / "out")
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1, left_out=["train/1", "train/0"])
    after = hashes(tmp_path / "out")
    assert before["dataset_hash"] == after["dataset_hash"]
    assert before["data_hash"] != after["data_hash"]


INSTANCES = {**make_card().layout.model_dump(), "instance": "instances/{split}/{id}.png"}


def add_instances(raw: Path, *splits: str) -> Card:
    """Instance maps beside the label maps of `splits`, the road two things in some columns; a card that knows them."""
    for path in (path for split in splits for path in raw.glob(f"labels/{split}/*.png")):
        codes = np.array(Image.open(path)).astype(np.uint16)
        road = codes == 7
        road[:, 30:] = False
        codes[road] = 7000 + road.cumsum(axis=0)[road] % 2
        out = raw / "instances" / path.relative_to(raw / "labels")
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(codes).save(out)
    return make_card(layout=INSTANCES)


def test_instances_come_along_for_val(raw: Path, tmp_path: Path) -> None:
    card = add_instances(raw, "train", "test")
    frame = scan(card, raw, workers=1)
    prepare(frame, card, raw, tmp_path / "out", workers=1)
    train, val = (open_prepared(tmp_path / "out", split) for split in ("train", "val"))
    assert train.instances is None
    assert val.instances is not None
    assert (val.instances.dtype, val.instances.shape) == (np.uint16, (2, 32, 64))
    expected = Image.open(raw / "instances/test/1.png").resize((64, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(val.instances[1], np.array(expected))
    assert set(np.unique(val.instances)) >= {0, 7, 7000, 7001}

    codes = np.array(Image.open(raw / "instances/test/1.png"))
    codes[40, 3] = 9000
    Image.fromarray(codes).save(raw / "instances/test/1.png")
    with pytest.raises(UserError, match=r"instances/test/1\.png: not the pixels that were indexed"):
        prepare(frame, card, raw, tmp_path / "out", workers=1)


def test_changed_instance_maps_change_the_hashes(raw: Path, tmp_path: Path) -> None:
    """Of val both, since they are prepared; of train that of the raw pairs alone."""
    card = add_instances(raw, "train", "test")

    def both() -> dict[str, str]:
        frame = scan(card, raw, workers=1)
        write_index(frame, tmp_path / "index.parquet")
        prepare(frame, card, raw, tmp_path / "out", workers=1)
        return {**hashes(tmp_path / "out"), "index": file_sha256(tmp_path / "index.parquet")}

    def merge(path: Path) -> None:
        codes = np.array(Image.open(path))
        Image.fromarray(np.where(codes == 7001, 7000, codes)).save(path)

    before = both()
    merge(raw / "instances/train/1.png")
    train = both()
    assert [name for name in before if before[name] != train[name]] == ["dataset_hash", "index"]
    merge(raw / "instances/test/1.png")
    val = both()
    assert [name for name in before if train[name] != val[name]] == ["dataset_hash", "data_hash", "index"]


@pytest.mark.parametrize("filters", ["_shrink_photo", "_shrink_map"])
def test_another_resizing_changes_data_hash(
    raw: Path, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: str
) -> None:
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    before = hashes(tmp_path / "out")

    def box(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        other = Image.Resampling.BOX if filters == "_shrink_photo" else Image.Resampling.NEAREST
        return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize(size[::-1], other))

    monkeypatch.setattr(preparing, filters, box)
    resizing.cache_clear()
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    after = hashes(tmp_path / "out")
    resizing.cache_clear()
    assert before["dataset_hash"] == after["dataset_hash"]
    assert before["data_hash"] != after["data_hash"]


def test_instances_of_some_pairs_are_left_out(raw: Path, tmp_path: Path) -> None:
    card = add_instances(raw, "train", "test")
    (raw / "instances/test/0.png").unlink()
    frame = scan(card, raw, workers=1)
    prepare(frame, card, raw, tmp_path / "out", workers=1)
    assert open_prepared(tmp_path / "out", "val").instances is None
    prepare(frame, card, raw, tmp_path / "out", workers=1, left_out=["val/0"])
    assert open_prepared(tmp_path / "out", "val").instances is not None


@pytest.mark.usefixtures("ray_session")
def test_workers_change_nothing(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    prepare(frame, make_card(), raw, tmp_path / "one", workers=1)
    prepare(shuffled, make_card(), raw, tmp_path / "two", workers=2)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["meta.json", "train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_data_hash_is_of_pixels_classes_and_size(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    def hashed(card: Card, frame: pd.DataFrame = frame) -> str:
        prepare(frame, card, raw, tmp_path / "out", workers=1)
        return data_hash(tmp_path / "out")

    first = hashed(make_card())
    assert hashed(make_card(title="Another title")) == first
    assert hashed(make_card(size=(64, 64))) != first
    swapped = [info.model_dump() for info in make_card().classes[::-1]]
    assert hashed(make_card(classes=swapped)) != first
    shutil.copy(raw / "images/train/0.png", raw / "images/train/1.png")
    assert hashed(make_card(), scan(make_card(), raw, workers=1)) != first


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_half_written(raw: Path, frame: pd.DataFrame, tmp_path: Path, workers: int) -> None:
    (raw / "images/train/2.png").write_bytes(b"gone bad since")
    with pytest.raises(UserError, match=r"images/train/2\.png: cannot be decoded.*dvc repro --force prepare"):
        prepare(frame, make_card(), raw, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_what_was_interrupted_goes_on(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def steps_of(card: Card) -> list[int]:
        steps: list[int] = []
        prepare(frame, card, raw, tmp_path / "out", lambda done, total: steps.append(done), workers=1)
        return steps

    with pytest.raises(KeyboardInterrupt):
        prepare(frame, make_card(), raw, tmp_path / "out", interrupt, workers=1)
    assert not (tmp_path / "out").exists()
    assert steps_of(make_card()) == [3, 4, 5]
    prepare(frame, make_card(), raw, tmp_path / "afresh", workers=1)
    for path in (tmp_path / "afresh").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afresh", "out", "raw"]

    with pytest.raises(KeyboardInterrupt):
        prepare(frame, make_card(), raw, tmp_path / "out", interrupt, workers=1)
    assert steps_of(make_card(size=(64, 64))) == [0, 1, 2, 3, 4, 5], "of another size: begun anew"


def test_a_failure_keeps_what_was_there(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    Image.new("RGB", (96, 48)).save(raw / "images/train/2.png")
    with pytest.raises(UserError, match=r"images/train/2\.png: not the pixels that were indexed"):
        prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    assert open_prepared(tmp_path / "out", "train").images[2].any()


def test_an_index_with_errors_is_refused(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    fewer = [info.model_dump() for info in make_card().classes[:2]]
    with pytest.raises(UserError, match=r"labels/train/0\.png: holds ids that are not in the card"):
        prepare(frame, make_card(classes=fewer), raw, tmp_path / "out", workers=1)
    (raw / "labels/train/1.png").unlink()
    with pytest.raises(UserError, match=r"train/1 cannot be used; `dvc repro validate` says why"):
        prepare(scan(make_card(), raw, workers=1), make_card(), raw, tmp_path / "out", workers=1)


def test_a_small_disk_is_told_before(
    raw: Path, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 6 * 32 * 64 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GB are free"):
        prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_arrays_are_read_only(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    with pytest.raises(ValueError, match="read-only"):
        open_prepared(tmp_path / "out", "val").images[0] = 0


def test_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro prepare"):
        open_prepared(tmp_path, "train")
    with pytest.raises(UserError, match="dvc repro prepare"):
        data_hash(tmp_path)


def test_prepared_by_an_earlier_version(raw: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    prepare(frame, make_card(), raw, tmp_path / "out", workers=1)
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    del meta["resizing"]
    (tmp_path / "out/meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="by an earlier version of dpgan; `dvc repro --force prepare`"):
        open_prepared(tmp_path / "out", "val")

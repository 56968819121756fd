"""dpgan.data.facts: what the contract looks at, derived from the index and the card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data.facts import (
    BLOCK,
    Near,
    class_pixels,
    dataset_hash,
    drift,
    most_moved,
    near_duplicates,
    pair_facts,
    split_facts,
    summary,
)
from dpgan.data.index import scan

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def row(table: pd.DataFrame, sample_id: str) -> pd.Series:
    return table.set_index("sample_id").loc[sample_id]


def test_facts_of_clean_pairs(raw: Path) -> None:
    card = make_card()
    facts = row(pair_facts(scan(card, raw, workers=1), card), "train/1")
    assert facts["image_size"] == facts["label_size"] == "96x48"
    assert facts["labelled_pixels"] == 48 * 96 - 1
    assert facts["ids_present"] == 3
    assert facts["stretch"] == 1
    assert facts[["unknown", "twin_across", "twin_near", "twin_within"]].isna().all()


def test_what_could_not_be_read_is_null_not_zero(raw: Path) -> None:
    (raw / "labels/train/1.png").write_bytes(b"x")
    card = make_card()
    facts = row(pair_facts(scan(card, raw, workers=1), card), "train/1")
    assert facts[["labelled_pixels", "ids_present", "label_size", "ramps", "unknown"]].isna().all()


def test_class_pixels_are_by_index(raw: Path) -> None:
    frame = scan(make_card(), raw, workers=1)
    expected = [[(24 + i) * 96 - 1, (24 - i) * 96, 1] for i in (0, 1, 2, 0, 1)]
    assert class_pixels(frame, make_card()).tolist() == expected


def test_twins_are_told_of_the_training_pair(raw: Path) -> None:
    photo = Image.open(raw / "images/train/1.png")
    photo.save(raw / "images/test/0.png", compress_level=0)
    photo.save(raw / "images/train/2.png", compress_level=0)
    card = make_card()
    facts = pair_facts(scan(card, raw, workers=1), card)
    assert list(facts["twin_across"]) == [None, "images/test/0.png", "images/test/0.png", None, None]
    assert list(facts["twin_within"]) == [None, None, "images/train/1.png", None, None]
    assert facts["twin_near"].isna().all()  # told once


def hashed(split: str, hashes: list[int], greys: list[np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": [f"{split}/{i}" for i in range(len(hashes))],
            "split": split,
            "image_dhash": [f"{value:016x}" for value in hashes],
            "image_dhash_mirrored": ["ffffffffffffffff"] * len(hashes),
            "image_grey": [grey.astype(np.uint8).tobytes().hex() for grey in greys],
        }
    )


def test_near_duplicates_agree_with_every_pair_compared() -> None:
    rng = np.random.default_rng(0)
    greys = [rng.integers(0, 256, 64) for _ in range(40)]
    val_hashes = [int(h) for h in rng.integers(0, 2**63, 40)]
    train_hashes = [int(h) for h in rng.integers(0, 2**63, 2 * BLOCK + 7)]
    train_greys = [greys[0]] * len(train_hashes)
    for i, flips in ((3, 0), (BLOCK - 1, 4), (BLOCK, 5), (2 * BLOCK + 6, 4)):  # 5 bits are too many
        train_hashes[i] = val_hashes[i % 40] ^ ((1 << flips) - 1)
        train_greys[i] = np.clip(greys[i % 40] * 1.1, 0, 255)
    train_greys[2 * BLOCK + 6] = greys[1]  # a hash alike, another photo
    frame = pd.concat([hashed("train", train_hashes, train_greys), hashed("val", val_hashes, greys)])
    expected = {
        f"train/{i}": Near(f"val/{j}", mirrored=False)
        for i, one in enumerate(train_hashes)
        for j, other in enumerate(val_hashes)
        if (one ^ other).bit_count() <= 4 and np.corrcoef(train_greys[i], greys[j])[0, 1] > 0.9
    }
    assert {i: near.sample for i, near in expected.items()} == {
        "train/3": "val/3",
        f"train/{BLOCK - 1}": f"val/{(BLOCK - 1) % 40}",
    }
    assert near_duplicates(frame) == expected


def test_the_most_alike_is_named() -> None:
    grey = np.arange(64)
    other = grey.copy()
    other[:8] = 60
    frame = pd.concat([hashed("train", [5], [grey]), hashed("val", [5, 5, 4], [other, grey, other])])
    assert near_duplicates(frame) == {"train/0": Near("val/1", mirrored=False)}


def test_no_photo_can_be_read() -> None:
    frame = pd.concat([hashed("train", [1], [np.arange(64)]), hashed("val", [1], [np.arange(64)])])
    frame["image_dhash"] = None
    assert near_duplicates(frame) == {}


def test_summary(raw: Path) -> None:
    card = make_card()
    frame = scan(card, raw, workers=1)
    content = summary(frame, card)
    assert content["dataset"] == "tiny"
    assert content["dataset_hash"] == dataset_hash(frame)
    assert content["pairs"] == {"train": 3, "val": 2}
    assert content["shares"]["val"]["void"] == pytest.approx(1 / (48 * 96), abs=1e-9)
    assert sum(content["shares"]["train"].values()) == pytest.approx(1, abs=1e-8)


def test_drift_is_the_share_of_pixels_that_changed_class() -> None:
    before, now = {"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.3, "c": 0.3}
    assert drift(now, before) == pytest.approx(0.3)
    assert drift(before, before) == 0
    assert [name for name, _, _ in most_moved(now, before)] == ["c", "b", "a"]


def test_chance_excuses_more_drift_in_small_splits(raw: Path) -> None:
    card = make_card()
    frame = scan(card, raw, workers=1)
    facts = split_facts(frame, card, summary(frame, card))
    assert list(facts["drift"]) == [0, 0]
    assert list(facts["drift_limit"]) == pytest.approx([0.75 / 3**0.5, 0.75 / 2**0.5])
    large = pd.concat([frame] * 200).assign(sample_id=lambda f: [f"{s}/{i}" for i, s in enumerate(f["split"])])
    facts = split_facts(large, card, summary(large, card))
    assert list(facts["drift_limit"]) == [0.05, 0.05]


def test_without_an_accepted_version_nothing_drifts(raw: Path) -> None:
    card = make_card()
    facts = split_facts(scan(card, raw, workers=1), card)
    assert facts[["drift", "drift_limit", "moved", "came_or_went"]].isna().all(axis=None)
    assert list(facts["pairs"]) == [3, 2]


def test_a_split_with_no_pair_left_is_counted(raw: Path) -> None:
    card = make_card()
    frame = scan(card, raw, workers=1)
    facts = split_facts(frame[frame["split"] == "train"], card, summary(frame, card))
    assert list(facts["pairs"]) == [3, 0]

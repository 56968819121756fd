"""What the data contract looks at: a row a pair and a row a split, derived from the index and the card."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dpgan import identities
from dpgan.checks import Pairs
from dpgan.data.scan import GREY
from dpgan.labels import Card

# Two photos are near-duplicates if at most NEAR of the 64 bits of their difference hashes differ, and their grey
# thumbnails correlate with ALIKE at least; so are a photo and the mirror image of another. Of toyscapes and CamVid
# photos that were saved anew (JPEG at quality 50), halved, doubled, squashed, brightened by a fifth or made grey, 94%
# to 100% come below, at correlations of 0.99; cropped by 2% on all sides, 71%. False alarms: none among 2.9 million
# pairs of toyscapes, where 6 bits are the least; in CamVid only frames of one clip between which the camera stood still
# come below, and none across its splits. The correlation is for photos with little in them (night, fog): their hashes
# are nearly empty, and so alike.
NEAR = 4
ALIKE = 0.9
BLOCK = 256  # training photos compared with all validation photos at once: bounds the memory

# Class shares drift where the total variation distance, the share of pixels that would have to change their class,
# is above DRIFT; or above what chance does to a split of n pairs: two random draws of n toyscapes or CamVid frames
# differ by 0.3 / sqrt(n) in the median of 100, and by 0.75 / sqrt(n) at most.
DRIFT = 0.05
CHANCE = 0.75
RARE = 0.001  # a class with this share of the pixels in one version and none in the other is told in any case
MOVED = 5  # classes that are named, those that changed most


def histograms(frame: pd.DataFrame) -> np.ndarray:
    """int64 [N, 256]: pixels by raw id of every pair; zeros where there is no readable label map."""
    rows = [[0] * 256 if h is None else h for h in frame["histogram"]]
    return np.array(rows, dtype=np.int64).reshape(-1, 256)


def class_pixels(frame: pd.DataFrame, card: Card) -> np.ndarray:
    """int64 [N, C]: pixels by class index of every pair."""
    return histograms(frame)[:, [info.id for info in card.classes]]


def class_shares(frame: pd.DataFrame, card: Card) -> dict[str, np.ndarray]:
    """float [C] by split: every class's share of the pixels whose id is in the card."""
    pixels = class_pixels(frame, card)
    shares: dict[str, np.ndarray] = {}
    for split in sorted(card.splits):
        total = pixels[(frame["split"] == split).to_numpy()].sum(axis=0)
        shares[split] = total / max(total.sum(), 1)
    return shares


def dataset_hash(frame: pd.DataFrame) -> str:
    """The version of a dataset: equal where the pairs and their pixels are, however the files are stored."""
    columns = ["sample_id", "image_sha256", "label_sha256", "instance_sha256"]
    rows = frame[columns].itertuples(index=False, name=None)
    return identities.raw_pairs(row if row[-1] else row[:-1] for row in rows)  # without instance maps: of three


def summary(frame: pd.DataFrame, card: Card) -> dict[str, Any]:
    """What a later version is compared with: the data's hash, the pairs, and the class shares by split."""
    return {
        "dataset": card.name,
        "dataset_hash": dataset_hash(frame),
        "pairs": {split: int((frame["split"] == split).sum()) for split in sorted(card.splits)},
        "shares": {
            split: {info.name: round(float(share), 9) for info, share in zip(card.classes, shares, strict=True)}
            for split, shares in class_shares(frame, card).items()
        },
    }


def offered(frame: pd.DataFrame, card: Card) -> Pairs:
    """What indexed pairs offer to training and scoring."""
    val = frame[frame["split"] == "val"]
    scored = bool(class_pixels(val, card)[:, card.evaluated].any())
    return Pairs(int((frame["split"] == "train").sum()), len(val), scored, bool(val["instance"].notna().all()))


class Near(NamedTuple):
    """The validation photo that a training photo is most like."""

    sample: str
    mirrored: bool  # left to right, as training flips do


def near_duplicates(frame: pd.DataFrame) -> dict[str, Near]:
    """The sample ids of training photos that nearly are in validation, as they are or mirrored, with their likes."""
    hashed = frame[frame["image_dhash"].notna()]
    train, val = hashed[hashed["split"] == "train"], hashed[hashed["split"] == "val"]
    ours, theirs, flipped = (
        np.array([int(h, 16) for h in hashes], dtype=np.uint64)
        for hashes in (train["image_dhash"], val["image_dhash"], val["image_dhash_mirrored"])
    )
    found: dict[str, tuple[float, Near]] = {}
    for start, (mirrored, hashes) in product(range(0, len(ours), BLOCK), enumerate((theirs, flipped))):
        distance = np.bitwise_count(ours[start : start + BLOCK, None] ^ hashes[None])
        for i, j in np.argwhere(distance <= NEAR):
            one, other = train.iloc[start + i], val.iloc[j]
            alike = _correlation(_grey(one), _grey(other)[:, :: -1 if mirrored else 1])
            if alike >= ALIKE and alike > found.get(one["sample_id"], (0.0,))[0]:
                found[one["sample_id"]] = (alike, Near(other["sample_id"], bool(mirrored)))
    return {one: near for one, (_, near) in found.items()}


def _grey(row: pd.Series) -> np.ndarray:
    """The grey thumbnail of a photo: uint8 [GREY, GREY]."""
    return np.frombuffer(bytes.fromhex(row["image_grey"]), np.uint8).reshape(GREY, GREY)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two grey thumbnails; 0 when one of them is flat."""
    a, b = (grey.ravel() - grey.mean() for grey in (one, other))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def _twins(frame: pd.DataFrame) -> tuple[list[str | None], list[str | None]]:
    """The photo with the same pixels as a row's: for training rows in validation, for all before it in its split.

    Only the training pair is at fault, so that the score's photos stay the same.
    """
    across: list[str | None] = []
    within: list[str | None] = []
    seen: dict[tuple[str, str], str] = {}
    val = frame[frame["split"] == "val"]
    validation: dict[str, str] = dict(zip(val["image_sha256"], val["image"], strict=True))
    for split, sha256, image in frame[["split", "image_sha256", "image"]].itertuples(index=False):
        across.append(validation.get(sha256) if sha256 and split == "train" else None)
        within.append(seen.get((split, sha256)) if sha256 else None)
        seen.setdefault((split, sha256), image)
    return across, within


def _told_ids(counts: np.ndarray, card: Card) -> str | None:
    """Ids of a map that are not in the card, the most frequent first, and what they look like."""
    unknown = np.flatnonzero((counts > 0) & (card.id_table < 0))
    if not unknown.size:
        return None
    ranked = sorted(unknown, key=lambda i: -counts[i])
    text = ", ".join(f"id {i} ({counts[i]} pixels)" for i in ranked[:8])
    if len(ranked) > 8:
        text += f" and {len(ranked) - 8} more ids"
    zero = card.id_table[0]
    if list(unknown) == [255] and zero >= 0 and card.classes[zero].void:
        text += f"; like ids less one, where 255 is what the card calls 0 ({card.classes[zero].name})"
    return text


def pair_facts(frame: pd.DataFrame, card: Card) -> pd.DataFrame:
    """A row a pair: columns of the index, and those that the card and the other pairs add to it."""
    counts, classes = histograms(frame), class_pixels(frame, card)
    height, width = card.size
    across, within = _twins(frame)
    near, photo = near_duplicates(frame), dict(zip(frame["sample_id"], frame["image"], strict=True))
    likes = [None if twin else near.get(sample) for sample, twin in zip(photo, across, strict=True)]

    def texts(values: list[str | None]) -> pd.Series:
        return pd.Series(values, index=frame.index, dtype=object)

    def where_read(values: np.ndarray) -> pd.Series:
        return pd.Series(values, index=frame.index, dtype="Int64").where(frame["histogram"].notna())

    labelled = counts.sum(axis=1) - classes[:, card.void].sum(axis=1)

    def size(kind: str) -> pd.Series:
        across, down = frame[f"{kind}_width"], frame[f"{kind}_height"]
        return (across.astype(str) + "x" + down.astype(str)).where(across.notna())

    unknown = [
        colors or (_told_ids(row, card) if card.encoding != "colors" else None)
        for colors, row in zip(frame["unknown_colors"], counts, strict=True)
    ]
    kept = ["sample_id", "split", "image", "label", "instance", "missing", "broken", "oversize", "image_fault",
            "label_fault", "instance_fault", "image_orientation", "label_orientation", "note"]  # fmt: skip
    return frame[kept].assign(
        ramps=frame["ramps"].astype(float),
        image_size=size("image"),
        label_size=size("label"),
        unknown=texts(unknown),
        labelled_pixels=where_read(labelled),
        ids_present=where_read((counts > 0).sum(axis=1)).where(labelled > 0),
        twin_across=texts(across),
        twin_near=texts([photo[one.sample] if one else None for one in likes]),
        mirrored=[", mirrored" if one and one.mirrored else "" for one in likes],
        twin_within=texts(within),
        stretch=(frame["image_width"] / frame["image_height"]) * (height / width),
    )


def _untrained(frame: pd.DataFrame, card: Card) -> str | None:
    """Classes of validation that no training map holds, with their validation pairs."""
    present = class_pixels(frame, card) > 0
    train = (frame["split"] == "train").to_numpy()
    lacking = present[~train].any(axis=0) & ~present[train].any(axis=0) & ~card.void
    told = []
    for i in np.flatnonzero(lacking):
        pairs = frame["label"][present[:, i] & ~train]
        told.append(f"{card.classes[i].name} ({len(pairs)} pairs, first {pairs.iloc[0]})")
    return ", ".join(told) or None


def _train_ids(counts: np.ndarray, card: Card) -> str | None:
    """What gives Cityscapes' trainIds away: evaluated classes are many, and numbered 0..K-1 in a whole split."""
    evaluated = np.array([card.classes[i].id for i in card.evaluated])
    last = len(evaluated) - 1
    present = np.flatnonzero(counts.sum(axis=0))
    beyond = np.count_nonzero(evaluated > last) / len(evaluated)
    if beyond < 0.25 or not present.size or np.any((present > last) & (present != 255)):
        return None
    return f"ids are 0 to {present[present <= last].max(initial=0)} and 255 only, as the {last + 1} trainIds are"


def drift(now: Mapping[str, float], before: Mapping[str, float]) -> float:
    """Total variation distance of class shares, 0..1: the share of pixels that would have to change their class."""
    return sum(abs(now.get(name, 0.0) - before.get(name, 0.0)) for name in now.keys() | before.keys()) / 2


def most_moved(now: Mapping[str, float], before: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(class, share before, share now), those that changed most first; the names break ties."""
    rows = [(name, before.get(name, 0.0), now.get(name, 0.0)) for name in now.keys() | before.keys()]
    return sorted(rows, key=lambda row: (-abs(row[2] - row[1]), row[0]))


def split_facts(frame: pd.DataFrame, card: Card, accepted: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A row a split, train and val: its pairs, and what is odd about them all; `sample_id` is the split.

    `accepted` is the `summary` of the last accepted version; without one nothing drifts.
    """
    current = summary(frame, card)
    counts = histograms(frame)
    rows = []
    for split in sorted(card.splits):
        pairs = current["pairs"][split]
        row: dict[str, Any] = {"sample_id": split, "folder": card.splits[split], "pairs": pairs}
        row["train_ids"] = _train_ids(counts[(frame["split"] == split).to_numpy()], card)
        row["untrained"] = _untrained(frame, card) if split == "val" else None
        if accepted and pairs:
            now, before = current["shares"][split], accepted["shares"].get(split, {})
            moved = most_moved(now, before)
            row["drift"] = drift(now, before)
            row["drift_limit"] = max(DRIFT, CHANCE / min(pairs, accepted["pairs"].get(split) or pairs) ** 0.5)
            row["moved"] = ", ".join(f"{name} {a:.2%} -> {b:.2%}" for name, a, b in moved[:MOVED])
            came_or_went = [f"{name} {a:.2%} -> {b:.2%}" for name, a, b in moved if min(a, b) == 0 and max(a, b) > RARE]
            row["came_or_went"] = ", ".join(came_or_went) or None
        rows.append(row)
    columns = ["sample_id", "folder", "pairs", "train_ids", "untrained",
               "drift", "drift_limit", "moved", "came_or_went"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)

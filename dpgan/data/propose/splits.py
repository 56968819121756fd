"""Who trains and who judges: the folders, lists or, where there is neither, the draw that part the pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.arrange import Series, split_word
from dpgan.data.propose.words import number, some
from dpgan.errors import UserError
from dpgan.labels import Role

LISTS = "splits/{split}.txt"  # where a proposed split is written, below the raw folder
SHARE, FEWEST = 0.1, 8  # of the pairs, for validation


class Splitting(NamedTuple):
    """How the pairs of two series are parted."""

    folders: dict[Role, str]  # what stands for {split}
    ids: str | None  # pattern of the list files
    lists: dict[str, list[str]]  # list files that are still to be written
    pairs: list[tuple[str, str]]  # photo and label map
    only: str | None  # the one folder that patterns with {split} mean
    found: list[str]
    suspicious: list[str]

    def literal(self, pattern: str) -> str:
        """The pattern for the card: with its only folder in place of {split}."""
        return pattern if self.only is None else pattern.replace("{split}", self.only)


def _roles(names: Iterable[str]) -> dict[Role, str]:
    """Which split trains and which judges, by their names; `test` judges where there is no `val`."""
    names = sorted(names)
    found: dict[Role, str] = {}
    for role, words in (("train", ("train",)), ("val", ("val", "test"))):
        match = next((n for word in words for n in names if n.lower().startswith(word)), None)
        if match is not None:
            found["train" if role == "train" else "val"] = match
    return found


def _draw(ids: Collection[str]) -> tuple[list[str], list[str]]:
    """A tenth of the ids for validation, drawn by their hashes: the same ids give the same split."""
    drawn = sorted(ids, key=lambda id_: hashlib.sha256(id_.encode()).digest())
    count = max(round(SHARE * len(ids)), min(FEWEST, len(ids) // 2))
    return sorted(drawn[count:]), sorted(drawn[:count])


def _listed(folder: Path, files: list[str], ids: set[str]) -> tuple[str, dict[Role, str]] | None:
    """List files that name the ids of two splits, as PASCAL VOC's ImageSets do."""
    by_pattern: dict[str, list[str]] = {}
    for path in files:
        parent, _, name = path.rpartition("/")
        split = split_word(Path(name).stem)
        if split is None or not name.lower().endswith(".txt"):
            continue
        lines = {line.strip() for line in (folder / path).read_text(errors="replace").splitlines() if line.strip()}
        if lines and len(lines & ids) >= 0.9 * len(lines):
            pattern = f"{parent}/" * bool(parent) + name.replace(split, "{split}", 1)
            by_pattern.setdefault(pattern, []).append(split)
    for pattern, splits in sorted(by_pattern.items()):
        if len(roles := _roles(splits)) == 2:
            return pattern, roles
    return None


def _orphans(image: Series, label: Series, splits: Iterable[str]) -> list[str]:
    """Photos without a label map and the other way round, as sentences."""
    told = []
    for series, other, kind, partner in ((image, label, "photo", "label map"), (label, image, "label map", "photo")):
        lonely = [series.path(s, i) for s in splits for i in sorted(series.ids(s) - other.ids(s))]
        if lonely:
            told.append(
                f"Without a {partner}: {number(len(lonely), kind)}, {some(lonely)}. Add it, or take the file out."
            )
    return told


def _few(train: int, val: int) -> list[str]:
    return [
        f"Only {number(count, 'pair')} for {what}; a split needs {FEWEST} at least (`min_pairs` in the card)."
        for count, what in ((train, "training"), (val, "validation"))
        if count < FEWEST
    ]


def split_pairs(folder: Path, files: list[str], image: Series, label: Series) -> Splitting:
    """How the pairs are parted into training and validation: by folders, else by lists, else by a draw."""
    tells = image if "" not in image.files else label  # the series whose paths tell the split, if any does
    every = {split: image.ids(split) & label.ids(split) for split in sorted(tells.files)}
    ids = {split: both for split, both in every.items() if both}
    bare = [f"{split} holds no pair, and is not used." for split in every if split not in ids]
    roles = _roles(split for split in ids if split)
    used = list(roles.values()) if len(roles) == 2 else list(ids)
    pairs = [(image.path(s, i), label.path(s, i)) for s in used for i in sorted(ids[s])]
    if len(roles) == 2:
        train, val = len(ids[roles["train"]]), len(ids[roles["val"]])
        found = [f"{number(train, 'pair')} to train on ({roles['train']}), {val} to judge on ({roles['val']})."]
        found += [f"{s} ({number(len(ids[s]), 'pair')}) is not used." for s in ids if s not in used] + bare
        if "" in (*image.files, *label.files):  # the other series has no split of its own, and gets it from lists
            lists = {LISTS.replace("{split}", split): sorted(ids[split]) for split in used}
            return Splitting(roles, LISTS, lists, pairs, None, found, _few(train, val))
        return Splitting(roles, None, {}, pairs, None, found, [*_orphans(image, label, used), *_few(train, val)])
    if len(ids) > 1:
        raise UserError(
            f"{folder}: the splits are called {', '.join(ids)}; dpgan needs one for training and one for validation: "
            "name their folders train and val"
        )
    only = used[0] or None
    odd = _orphans(image, label, used)
    if listed := _listed(folder, files, ids[used[0]]):
        pattern, roles = listed
        told = (
            f"{number(len(pairs), 'pair')}, split by {pattern}: {roles['train']} to train on, {roles['val']} to judge."
        )
        return Splitting(roles, pattern, {}, pairs, only, [told, *bare], odd)
    drawn = _draw(ids[used[0]])
    lists = {LISTS.replace("{split}", split): list_ for split, list_ in zip(("train", "val"), drawn, strict=True)}
    told = (
        f"There is no split: {len(drawn[1])} of {number(len(pairs), 'pair')} were drawn for validation ({LISTS}). If "
        "photos are frames of a film or show the same places, that leaks: put whole films or places into one list."
    )
    few = _few(*map(len, drawn))
    return Splitting({"train": "train", "val": "val"}, LISTS, lists, pairs, only, bare, [told, *odd, *few])

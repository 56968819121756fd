"""Who trains and who judges: the folders, lists or, where there is neither, the draw that part the pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dpgan.data.propose.arrange import Series, shared, split_word
from dpgan.data.propose.words import some
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


def _both(found: dict[Role, str]) -> bool:
    return len(found) == 2


def _draw(ids: set[str]) -> tuple[list[str], list[str]]:
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
        if _both(roles := _roles(splits)):
            return pattern, roles
    return None


def _orphans(image: Series, label: Series, splits: Iterable[str]) -> list[str]:
    """Photos without a label map and the other way round, as sentences."""
    told = []
    for series, other, kind, partner in ((image, label, "photos", "label map"), (label, image, "label maps", "photo")):
        lonely = [series.files[s][i] for s in splits for i in sorted(set(series.files.get(s, {})) - other.ids(s))]
        if lonely:
            told.append(
                f"{len(lonely)} {kind} have no {partner}: {some(lonely)}. Add it, or take them out of the folder."
            )
    return told


def split_pairs(folder: Path, files: list[str], image: Series, label: Series) -> Splitting:
    """How the pairs are parted into training and validation."""
    by_split = image if "" not in image.files else label
    every = {s: image.ids(s) & label.ids(s) for s in by_split.files}
    roles = _roles(s for s in every if s and every[s])
    names = [s for s in every if s in roles.values()] if _both(roles) else list(every)
    pairs = [
        (image.files.get(s, image.files.get("", {}))[i], label.files.get(s, label.files.get("", {}))[i])
        for s in names
        for i in sorted(every[s])
    ]
    odd = _orphans(image, label, names)
    if _both(roles):
        counts = {role: len(every[name]) for role, name in roles.items()}
        found = [
            f"{counts['train']} pairs in {roles['train']} train, {counts['val']} in {roles['val']} judge "
            f"({shared(image, label)} pairs in all)."
        ]
        for name in sorted(set(every) - set(roles.values())):
            found.append(f"{name} ({len(every[name])} pairs) is not used.")
        ids, lists = None, {}
        if "" in image.files or "" in label.files:  # only one of the two is in folders by split: it tells the other
            ids = LISTS
            lists = {LISTS.replace("{split}", name): sorted(every[name]) for name in roles.values()}
            odd = []
        return Splitting(roles, ids, lists, pairs, None, found, [*odd, *_few(counts)])
    if len(every) > 1:
        raise UserError(
            f"{folder}: the splits are called {', '.join(sorted(every))}; dpgan needs one for training and one for "
            "validation: name their folders train and val"
        )
    only, ids_of_all = next(iter(every.items()))
    listed = _listed(folder, files, ids_of_all)
    if listed is not None:
        pattern, roles = listed
        found = [f"{len(ids_of_all)} pairs; {pattern} parts them: {roles['train']} train, {roles['val']} judge."]
        return Splitting(roles, pattern, {}, pairs, only or None, found, odd)
    train, val = _draw(ids_of_all)
    lists = {LISTS.replace("{split}", "train"): train, LISTS.replace("{split}", "val"): val}
    told = (
        f"The {len(ids_of_all)} pairs have no split: {len(val)} were drawn for validation ({LISTS}). Where photos are "
        "frames of a film or show the same places, that leaks: put whole films or places into one list instead."
    )
    counts = {"train": len(train), "val": len(val)}
    return Splitting(
        {"train": "train", "val": "val"}, LISTS, lists, pairs, only or None, [], [told, *odd, *_few(counts)]
    )


def _few(counts: dict[Role, int]) -> list[str]:
    return [
        f"Only {count} pairs for {'training' if role == 'train' else 'validation'}; a split needs {FEWEST} at least "
        "(`min_pairs` in the card)."
        for role, count in counts.items()
        if count < FEWEST
    ]

"""Who trains and who judges: the folders, lists or, where there is neither, the draw that part the pairs."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from dpgan.data.layout import read_ids
from dpgan.data.propose.arrange import Series, split_word
from dpgan.data.propose.formats import UnclearError
from dpgan.data.propose.names import decoded
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
    counts: tuple[int, int]  # pairs to train on, and to judge
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


class _Lists(NamedTuple):
    """Two list files and the ids that they name."""

    pattern: str
    roles: dict[Role, str]
    ids: dict[Role, list[str]]
    plain: bool  # one id per line, as a card's `layout.ids` means it
    strangers: list[str]  # lines that name no pair


LIST_WORDS = re.compile(r"lists?|pairs?|ids?|files?|names?|images?|sets?|splits?|imgs?|filenames?")


def _names_files(stem: str, split: str) -> bool:
    """Whether a file is called as a list of a split: train.txt, val_list.txt, image_names_train.csv."""
    rest = re.split(r"[^a-z]+", stem.lower().replace(split.lower(), " ", 1))
    return all(not word or LIST_WORDS.fullmatch(word) for word in rest)


def _lookup(image: Series, label: Series, ids: set[str]) -> dict[str, set[str]]:
    """Ids by whatever a list may call them: id, name, or the end of a path, with or without its ending."""
    found: dict[str, set[str]] = defaultdict(set)
    for id_ in ids:
        found[id_].add(id_)
    for series in (image, label):
        for by_id in series.files.values():
            for id_, path in by_id.items():
                if id_ not in ids:
                    continue
                parts = path.split("/")
                for i in range(len(parts)):
                    end = "/".join(parts[i:])
                    found[end].add(id_)
                    found[end.rpartition(".")[0]].add(id_)
    return found


def _id_of(text: str, lookup: dict[str, set[str]]) -> str | None:
    """The id that a path of a list means: the longest end of it that is known, and only if it is of one pair."""
    parts = text.replace("\\", "/").split("/")
    for i in range(len(parts)):
        if found := lookup.get("/".join(parts[i:])):
            return next(iter(found)) if len(found) == 1 else None
    return None


def _line_id(path: str, line: str, lookup: dict[str, set[str]]) -> str | None:
    """The id that a line of a list means: one id or path, or the photo's and the label map's in two columns."""
    for whole in (line, line.strip()):
        if id_ := _id_of(whole, lookup):
            return id_
    columns = [id_ for word in re.split(r"[\s,;]+", line.strip()) if (id_ := _id_of(word.strip('"'), lookup))]
    if len(set(columns)) > 1:
        raise UserError(f"{path}: the line {line.strip()!r} names files of two pairs, {columns[0]} and {columns[1]}")
    return columns[0] if columns else None


def _read_list(folder: Path, path: str) -> list[str]:
    try:
        text = decoded((folder / path).read_bytes())
    except UnclearError as error:
        raise UserError(f"{folder / path}: looks like the list of a split, but {error}") from None
    except OSError:
        return []
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _listed(folder: Path, files: list[str], image: Series, label: Series, ids: set[str]) -> _Lists | None:
    """List files that name the pairs of two splits; UserError if there are such files, and they name none or half."""
    lookup = _lookup(image, label, ids)
    by_pattern: dict[str, dict[str, tuple[list[str], list[str], bool]]] = {}
    refused = []
    for path in files:
        parent, _, name = path.rpartition("/")
        stem, _, ending = name.rpartition(".")
        split = split_word(stem)
        if split is None or ending.lower() not in ("txt", "lst", "csv"):
            continue
        lines = _read_list(folder, path) if _names_files(stem, split) or ending.lower() == "txt" else []
        found = [_line_id(path, line, lookup) for line in lines]
        strangers = [line for line, id_ in zip(lines, found, strict=True) if id_ is None]
        if ending.lower() == "csv" and strangers[:1] == lines[:1]:  # a header
            strangers = strangers[1:]
        if lines and 10 * len(strangers) <= len(lines):
            pattern = f"{parent}/" * bool(parent) + name.replace(split, "{split}", 1)
            known = [id_ for id_ in found if id_ is not None]
            plain = set(read_ids(lines, ids)) <= ids
            by_pattern.setdefault(pattern, {})[split] = (known, strangers, plain)
        elif lines and _names_files(stem, split):
            refused.append((path, number(len(strangers), "line"), len(lines), strangers[0].strip()))
    for pattern, lists in sorted(by_pattern.items()):
        if len(roles := _roles(lists)) == 2:
            chosen = {role: lists[split] for role, split in roles.items()}
            odd = [line for _, strangers, _ in chosen.values() for line in strangers]
            plain = all(plain for _, _, plain in chosen.values())
            return _Lists(pattern, roles, {r: list(dict.fromkeys(c[0])) for r, c in chosen.items()}, plain, odd)
    if refused:
        path, count, lines_, example = refused[0]
        raise UserError(
            f"{folder / path}: looks like the list of a split, but {count} of {lines_} name no pair ({example!r}); "
            f"the pairs are called {some(sorted(ids), 2)}. Write one of these per line, or rename the file if it is "
            "no list"
        )
    for pattern, lists in sorted(by_pattern.items()):
        split = next(iter(lists))
        given = pattern.replace("{split}", split)
        if not _names_files(Path(given).stem, split):
            continue
        raise UserError(
            f"{folder / given}: is the list of one split, and there is none for the other next to it; write lists for "
            "both, train and val"
        )
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


def few(train: int, val: int) -> list[str]:
    """Splits with fewer pairs than a card's `min_pairs`, as sentences."""
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
            return Splitting(roles, LISTS, lists, pairs, (train, val), None, found, [])
        return Splitting(roles, None, {}, pairs, (train, val), None, found, _orphans(image, label, used))
    if len(ids) > 1:
        raise UserError(
            f"{folder}: the splits are called {', '.join(ids)}; dpgan needs one for training and one for validation: "
            "name their folders train and val"
        )
    only = used[0] or None
    odd = _orphans(image, label, used)
    if listed := _listed(folder, files, image, label, ids[used[0]]):
        roles = listed.roles
        train, val = (len(listed.ids[role]) for role in ("train", "val"))
        note = (
            f"{number(len(pairs), 'pair')}, split by {listed.pattern}: {train} to train on ({roles['train']}), {val} "
            f"to judge ({roles['val']})."
        )
        if listed.strangers:
            odd.append(f"Listed, but there is no such pair: {some(line.strip() for line in listed.strangers)}.")
        if listed.plain:
            return Splitting(roles, listed.pattern, {}, pairs, (train, val), only, [note, *bare], odd)
        lists = {LISTS.replace("{split}", roles[role]): sorted(listed.ids[role]) for role in roles}
        note += f" They name files, not ids: written anew as {LISTS}."
        return Splitting(roles, LISTS, lists, pairs, (train, val), only, [note, *bare], odd)
    drawn = _draw(ids[used[0]])
    lists = {LISTS.replace("{split}", split): list_ for split, list_ in zip(("train", "val"), drawn, strict=True)}
    note = (
        f"There is no split: {len(drawn[1])} of {number(len(pairs), 'pair')} were drawn for validation ({LISTS}). If "
        "photos are frames of a film or show the same places, that leaks: put whole films or places into one list."
    )
    counts = (len(drawn[0]), len(drawn[1]))
    return Splitting({"train": "train", "val": "val"}, LISTS, lists, pairs, counts, only, bare, [note, *odd])

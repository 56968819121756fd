"""Which files of a raw folder belong together: the pairs of a card's layout."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from dpgan.errors import UserError
from dpgan.labels import Card, Role


class Pair(NamedTuple):
    """What the folder listing knows of a pair; paths are relative to the raw folder, None where missing."""

    split: Role
    id: str
    image: str | None
    label: str | None
    instance: str | None
    missing: str | None  # the fault, where a partner is missing


def _listing(raw: Path, pattern: str, split: str) -> dict[str, str]:
    """Files below `raw` that fit a layout pattern: relative POSIX path by id."""
    pattern = pattern.replace("{split}", split)
    before, after = pattern.split("{id}", maxsplit=1)
    fits = re.compile(re.escape(before) + "(.+)" + re.escape(after))
    found = {}
    for folder, _, names in os.walk(raw / before.rpartition("/")[0], followlinks=True):
        for name in names:
            path = (Path(folder) / name).relative_to(raw).as_posix()
            if match := fits.fullmatch(path):
                found[match[1]] = path
    return found


def _no_files(card: Card, raw: Path, pattern: str, split: str) -> UserError:
    """No file fits a pattern: say what was looked for, and what lies there instead."""
    looked_for = pattern.replace("{split}", split)
    files = (p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    found = ", ".join(name for name, _ in zip(files, range(5), strict=False))
    return UserError(
        f"{raw}: no file fits {looked_for!r}, the layout of data/{card.name}/dataset.yaml; "
        f"found {'instead: ' + found if found else 'no file at all'}. "
        f"Lay the files out like that, or mend `raw` in params.yaml or `layout` in the card"
    )


def find_pairs(card: Card, raw: Path) -> list[Pair]:
    """Every pair of the layout, sorted by split and id; a file whose partner is missing is a pair too."""
    if not raw.is_dir():
        raise UserError(
            f"{raw}: no such folder; set `raw` in params.yaml to the folder that holds the raw pairs of "
            f"{card.name} (data/{card.name}/README.md says how to obtain them)"
        )
    pairs = []
    for role, split in sorted(card.splits.items()):
        layout = card.layout
        images, labels = (_listing(raw, pattern, split) for pattern in (layout.image, layout.label))
        for found, pattern in ((images, layout.image), (labels, layout.label)):
            if not found:
                raise _no_files(card, raw, pattern, split)
        instances = _listing(raw, layout.instance, split) if layout.instance else {}
        for id_ in sorted(images.keys() | labels.keys()):
            missing = None
            if id_ not in labels:
                expected = layout.label.replace("{split}", split).replace("{id}", id_)
                missing = f"{images[id_]}: has no label map (expected {expected})"
            elif id_ not in images:
                expected = layout.image.replace("{split}", split).replace("{id}", id_)
                missing = f"{labels[id_]}: has no photo (expected {expected})"
            pairs.append(Pair(role, id_, images.get(id_), labels.get(id_), instances.get(id_), missing))
    return pairs

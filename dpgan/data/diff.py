"""What changed between two versions of a dataset, from their indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpgan.data.facts import class_pixels
from dpgan.labels import Card, Role

PIXELS = ["image_sha256", "label_sha256", "instance_sha256"]
KINDS = ["photo", "label map", "instance map"]
LISTED = 10  # samples of a kind that are named
SHIFTED = 10  # classes of a split that are named, those that changed most first


@dataclass(frozen=True)
class Shift:
    """A class's share of a split's pixels, 0..1, before and after."""

    split: Role
    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Diff:
    """Sample ids by what happened to them, and the shares of all classes."""

    added: list[str]
    removed: list[str]
    moved: dict[str, str]  # the same pixels under another id: from, to
    altered: dict[str, str]  # what of it: "photo", "label map and instance map", ...
    shifts: list[Shift]

    @property
    def same(self) -> bool:
        return not (self.added or self.removed or self.moved or self.altered)


def diff(before: pd.DataFrame, after: pd.DataFrame, card: Card) -> Diff:
    """Compare two indices by the pixels of their pairs; paths and file formats do not count. `card` names classes."""
    old, new = (frame.set_index("sample_id")[PIXELS] for frame in (before, after))
    removed, added = old.index.difference(new.index), new.index.difference(old.index)
    where = {tuple(row): name for name, row in zip(added, new.loc[added].to_numpy(), strict=True)}
    moved = {
        str(name): where[tuple(row)]
        for name, row in zip(removed, old.loc[removed].to_numpy(), strict=True)
        if tuple(row) in where and None not in tuple(row)[:2]  # not every dataset has instance maps
    }
    both = old.index.intersection(new.index)
    names = both.to_list()
    changed = (old.loc[both].fillna("") != new.loc[both].fillna("")).to_numpy()
    altered = {
        str(names[i]): " and ".join(kind for kind, differs in zip(KINDS, changed[i], strict=True) if differs)
        for i in np.flatnonzero(changed.any(axis=1))
    }
    return Diff(
        added=sorted(set(added) - set(moved.values())),
        removed=sorted(set(removed) - set(moved)),
        moved=moved,
        altered=altered,
        shifts=[shift for split in sorted(card.splits) for shift in _shifts(before, after, card, split)],
    )


def _shifts(before: pd.DataFrame, after: pd.DataFrame, card: Card, split: Role) -> list[Shift]:
    """The shares of a split's classes, those that changed most first."""
    shares = []
    for frame in (before, after):
        pixels = class_pixels(frame[frame["split"] == split], card).sum(axis=0)
        shares.append(pixels / max(pixels.sum(), 1))
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")
    return [Shift(split, card.classes[i].name, float(shares[0][i]), float(shares[1][i])) for i in order]


def describe(changes: Diff) -> list[str]:
    """The lines that say it: what happened to which pairs, and which classes take a larger or smaller share now."""
    if changes.same:
        return ["the same pairs, pixel by pixel"]
    lines: list[str] = []
    groups = {
        "added": changes.added,
        "removed": changes.removed,
        "moved": [f"{a} -> {b}" for a, b in changes.moved.items()],
        "altered": [f"{name}: {what}" for name, what in changes.altered.items()],
    }
    for kind, names in groups.items():
        lines.append(f"{len(names):>7} {kind}")
        lines += [f"          {name}" for name in names[:LISTED]]
        if len(names) > LISTED:
            lines.append(f"          and {len(names) - LISTED} more")
    for split in dict.fromkeys(shift.split for shift in changes.shifts):
        shifts = [s for s in changes.shifts if s.split == split]
        distance = sum(abs(s.after - s.before) for s in shifts) / 2
        lines.append(f"{split}: {distance:.2%} of the pixels changed their class in the balance; most:")
        lines += [
            f"          {s.name:<24}{s.before:>9.3%} -> {s.after:.3%}"
            for s in shifts[:SHIFTED]
            if f"{s.before:.3%}" != f"{s.after:.3%}"
        ]
    return lines

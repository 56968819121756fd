"""The report of a validation: one page that needs no network, and what other stages read of it.

`templates/data_report.html.jinja` is the page; this module gathers what stands on it. Pictures are small, inline, and
few, so that the page stays below 3 MB whatever the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from dpgan.data.decode import decode, decode_ids
from dpgan.data.facts import class_pixels, class_shares, dataset_hash, drift, most_moved, summary
from dpgan.files import write_json
from dpgan.labels import Card, Role
from dpgan.page import Picture, data_url, hex_color, render

if TYPE_CHECKING:
    from dpgan.data.validation import Finding, Report

LISTED = 100  # lines of a finding, and quarantined pairs; findings.json and quarantine.json hold all
SHOWN = 6  # pictured pairs of a finding
PICTURED = 48  # pictured pairs of all findings
SAMPLES = 4  # pairs of a split on the sample sheet
SHIFTED = 8  # classes of a split whose drift is told
SIZES = 6  # photo sizes that are listed
THUMB, SAMPLE = (200, 200), (320, 320)  # pictures fit into these pixels
UNKNOWN = (255, 0, 255)  # pixels of no class in a coloured label map
ROWS = 48  # classes a column of the plot
FLOOR = 1e-5  # left end of the plot's logarithmic axis
COLUMNS = {"train": "#23618f", "val": "#e07b22"}


@dataclass(frozen=True)
class Fault:
    """A pictured pair of a finding."""

    detail: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Row:
    """A class in the plot: its share of the pixels by split, and where that is on the axis, 0..1 or None."""

    name: str
    color: str
    kind: str
    shares: dict[str, float]
    at: dict[str, float | None]


@dataclass(frozen=True)
class Drift:
    """How a split's classes moved since the accepted version."""

    split: str
    distance: float
    pairs: tuple[int, int]
    moved: list[tuple[str, float, float]]


def write_report(
    report: Report,
    frame: pd.DataFrame,
    card: Card,
    raw: Path,
    folder: Path,
    accepted: Mapping[str, Any] | None = None,
) -> None:
    """`report.html`, `findings.json` (every finding whole) and `quarantine.json` (sample id -> why it is left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {split: int((frame["split"] == split).sum()) for split in sorted(card.splits)}
    content = {
        "dataset": card.name,
        "dataset_hash": dataset_hash(frame),
        "pairs": counts,
        "quarantined": len(report.quarantined),
        "stops": report.stops,
        "findings": [{"count": finding.count, **asdict(finding)} for finding in report.findings],
    }
    write_json(folder / "findings.json", content)
    write_json(folder / "quarantine.json", report.quarantined)
    left = frame[~frame["sample_id"].isin(report.quarantined)]
    (folder / "report.html").write_text(
        render(
            "data_report.html.jinja",
            percent=percent,
            card=card,
            report=report,
            splits=_splits(frame, report, card),
            faults=_faults(report, frame, card, raw),
            rows=(rows := _rows(left, card)),
            columns=[rows[i : i + ROWS] for i in range(0, len(rows), ROWS)],
            absent=[
                info.name for info, row in zip(card.classes, class_pixels(left, card).T, strict=True) if not row.any()
            ],
            ticks=[(10.0**e, _axis(10.0**e)) for e in range(round(math.log10(FLOOR)), 1)],
            split_colors=COLUMNS,
            sizes=_sizes(frame),
            samples=_samples(left, card, raw),
            legend=_legend(left, card),
            drifts=_drifts(left, card, accepted) if accepted else [],
            docs=(folder / "data_docs").exists(),
            LISTED=LISTED,
        )
    )


def percent(share: float) -> str:
    """A share of the pixels with two digits that count: 31.7%, 0.12%, 0.0041%."""
    if 0 < share < FLOOR:
        return f"<{FLOOR:.3%}"
    return f"{share:.1%}" if share >= 0.01 else f"{share * 100:.2g}%"


# Pictures


def _photo(raw: Path, name: str | None, box: tuple[int, int]) -> Picture:
    if name is None:
        return Picture("no photo")
    image, fault, _ = decode(raw / name)
    if image is None:
        return Picture(fault or "")
    return Picture(name, data_url(image.convert("RGB"), "jpeg", box, Image.Resampling.BOX))


def _label(raw: Path, name: str | None, card: Card, box: tuple[int, int]) -> Picture:
    """A label map in the card's colours; as it is stored where it holds no ids."""
    if name is None:
        return Picture("no label map")
    ids, fault, _ = decode_ids(raw / name, card.label_format)
    if ids is None:
        image, undecodable, _ = decode(raw / name)
        if image is None:
            return Picture(undecodable or "")
        return Picture(f"{name}: {fault}", data_url(image.convert("RGB"), "png", box, Image.Resampling.NEAREST))
    colors = np.full((256, 3), UNKNOWN, dtype=np.uint8)
    for info in card.classes:
        colors[info.id] = info.color
    painted = Image.fromarray(colors[np.asarray(ids)])
    return Picture(name, data_url(painted, "png", box, Image.Resampling.NEAREST))


def _faults(report: Report, frame: pd.DataFrame, card: Card, raw: Path) -> list[tuple[Finding, list[Fault]]]:
    """Every finding with pictures of its first pairs."""
    files = frame.set_index("sample_id")[["image", "label"]].to_dict("index")
    told = []
    left = PICTURED
    for finding in report.findings:
        shown = []
        for i, sample in enumerate(finding.samples[: min(SHOWN, left)]):
            if sample not in files:  # a split
                continue
            pair = files[sample]
            pictures = [_photo(raw, pair["image"], THUMB)]
            if finding.beside:
                pictures.append(_photo(raw, finding.beside[i], THUMB))
            else:
                pictures.append(_label(raw, pair["label"], card, THUMB))
            shown.append(Fault(finding.details[i], pictures))
        left -= len(shown)
        told.append((finding, shown))
    return told


def _samples(frame: pd.DataFrame, card: Card, raw: Path) -> dict[Role, list[tuple[str, Picture, Picture]]]:
    """Pairs of every split, evenly spread over its ids: the same ones for the same data."""
    sheet: dict[Role, list[tuple[str, Picture, Picture]]] = {}
    for split in sorted(card.splits):
        pairs = _spread(frame[(frame["split"] == split) & frame["histogram"].notna() & frame["image_sha256"].notna()])
        sheet[split] = [
            (sample_id, _photo(raw, image, SAMPLE), _label(raw, label, card, SAMPLE))
            for sample_id, image, label in zip(pairs["sample_id"], pairs["image"], pairs["label"], strict=True)
        ]
    return sheet


def _spread(pairs: pd.DataFrame) -> pd.DataFrame:
    """SAMPLES rows of those given, evenly spread."""
    places = np.linspace(0, len(pairs) - 1, min(SAMPLES, len(pairs))).round().astype(int)
    return pairs.iloc[places]


def _legend(frame: pd.DataFrame, card: Card) -> list[tuple[str, str]]:
    """(class, colour) of what is in the sample sheet's label maps."""
    shown = pd.concat([_spread(frame[(frame["split"] == s) & frame["histogram"].notna()]) for s in sorted(card.splits)])
    present = class_pixels(shown, card).sum(axis=0)
    return [(info.name, hex_color(info.color)) for info, there in zip(card.classes, present, strict=True) if there]


# Numbers


def _axis(share: float) -> float:
    """Place of a share on the logarithmic axis from FLOOR to 1, 0..1."""
    return min(1.0, max(0.0, 1 - math.log10(share) / math.log10(FLOOR)))


def _rows(frame: pd.DataFrame, card: Card) -> list[Row]:
    """The classes that occur, the most frequent in training first."""
    shares = class_shares(frame, card)
    rows = []
    for i, info in enumerate(card.classes):
        own = {split: float(values[i]) for split, values in shares.items()}
        kind = "void" if info.void else "" if info.evaluate else "not scored"
        at = {split: _axis(share) if share else None for split, share in own.items()}
        rows.append(Row(info.name, hex_color(info.color), kind, own, at))
    return sorted((row for row in rows if any(row.shares.values())), key=lambda row: (-row.shares["train"], row.name))


def _splits(frame: pd.DataFrame, report: Report, card: Card) -> list[dict[str, Any]]:
    rows = []
    for split, folder in sorted(card.splits.items()):
        samples = frame["sample_id"][frame["split"] == split]
        out = int(samples.isin(report.quarantined).sum())
        rows.append({"split": split, "folder": folder, "pairs": len(samples), "faulty": out})
    return rows


def _sizes(frame: pd.DataFrame) -> tuple[list[tuple[str, int]], int]:
    """The most frequent photo sizes with their photos, and how many sizes there are besides."""
    known = frame[frame["image_width"].notna()]
    counts = (known["image_width"].astype(str) + "x" + known["image_height"].astype(str)).value_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return [(str(size), int(count)) for size, count in ranked[:SIZES]], max(0, len(ranked) - SIZES)


def _drifts(frame: pd.DataFrame, card: Card, accepted: Mapping[str, Any]) -> list[Drift]:
    current = summary(frame, card)
    drifts = []
    for split, now in current["shares"].items():
        before = accepted["shares"].get(split, {})
        pairs = (int(accepted["pairs"].get(split, 0)), current["pairs"][split])
        moved = [row for row in most_moved(now, before)[:SHIFTED] if row[1] != row[2]]
        drifts.append(Drift(split, drift(now, before), pairs, moved))
    return drifts

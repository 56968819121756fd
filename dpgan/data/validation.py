"""The data contract: a Great Expectations suite over the index, and its report page.

An *error* stops the pipeline: training would crash, or learn something wrong. A *warning* is only reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import great_expectations as gx
import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.row_conditions import Column

from dpgan.errors import UserError
from dpgan.labels import Card

Severity = Literal["error", "warning"]

MAX_STRETCH = 1.2  # how far prepare's resizing may change a photo's aspect ratio before it is reported
SHOWN = 5  # details in an error message
LISTED = 200  # details in the report; findings.json holds all


class Check(NamedTuple):
    """A row of the suite. `tells` makes a detail of a failing row of `facts`, or of the result itself."""

    name: str
    severity: Severity
    expectation: Any
    tells: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """An expectation that does not hold: for how many pairs, why that matters, what to do, which they are."""

    expectation: str
    severity: Severity
    count: int
    reason: str
    remedy: str
    samples: list[str]  # sample ids; empty where a whole split is meant
    details: list[str]  # a line each: the file, and what is wrong with it


def suite(card: Card) -> list[Check]:
    """What is expected of a dataset, errors first."""
    null, between, rows = (
        gxe.ExpectColumnValuesToBeNull, gxe.ExpectColumnValuesToBeBetween, gxe.ExpectTableRowCountToBeBetween
    )  # fmt: skip
    enough = [
        Check(f"{split} has enough pairs", "error",
              rows(min_value=card.min_pairs, row_condition=Column("split") == split),
              f"{split} ({folder}): {{observed_value}} pairs, {card.min_pairs} at least",
              "Too few pairs to train on or to score.",
              "Add pairs; or mend `splits` and `layout`, or lower `min_pairs`, in the card.")
        for split, folder in sorted(card.splits.items())
    ]  # fmt: skip
    return [
        Check("files are whole and paired", "error", null(column="fault"), "{fault}",
              "A pair without a readable photo and label map cannot be trained on.",
              "Restore the file from the source, or delete both files of the pair."),
        Check("photo and label map have one size", "error",
              gxe.ExpectColumnPairValuesToBeEqual(
                  column_A="image_size", column_B="label_size", ignore_row_if="either_value_is_missing"),
              "{image} is {image_size}, {label} is {label_size}",
              "Labels would lie beside the things they name.",
              "Check the pairing; resize label maps by nearest neighbour only."),
        Check("label ids are in the card", "error", null(column="unknown_ids"), "{label}: {unknown_ids}",
              "An id that the card does not list belongs to no class.",
              "Add the id to `classes` in the card (`void: true` for don't care), or mend the label maps; "
              "ids that nobody drew come from smooth resizing or JPEG."),
        Check("label maps are not all void", "error", between(column="labelled_pixels", min_value=1),
              "{label}: every pixel is void",
              "A map without a labelled pixel trains nothing.",
              "Delete the pair, or check that the maps are of the edition that the card describes."),
        *enough,
        Check("no photo is in both splits", "error", null(column="twin_across"), "{image} = {twin_across}",
              "The score would be taken on photos that training has seen.",
              "Delete one of the two pairs, or mend `splits` in the card."),
        Check("no photo stands twice in a split", "warning", null(column="twin_within"),
              "{image} = {twin_within}",
              "It counts twice, in training or in the score.",
              "Delete one of the two pairs."),
        Check("label maps hold several classes", "warning", between(column="ids_present", min_value=2),
              "{label}: one class only",
              "A scene of one class is often an unfinished annotation.",
              "Look at the map, and delete the pair if it is not finished."),
        Check("training has every class of val", "warning", null(column="untrained"), "{label}: {untrained}",
              "Photos would be asked for, and judged on, classes that training never sees.",
              "Move pairs between the splits, or make these classes `void: true` in the card."),
        Check("resizing keeps the shape of photos", "warning",
              between(column="stretch", min_value=1 / MAX_STRETCH, max_value=MAX_STRETCH),
              "{image}: {image_size}, its height grows {stretch:.2f}x against its width",
              f"At the card's size, {card.size[1]}x{card.size[0]}, things look stretched or squashed.",
              "Choose a `size` in the card with the aspect ratio of the photos."),
        Check("files decode without a complaint", "warning", null(column="note"), "{note}",
              "The file could be read, but is not as it should be.",
              "Write the file again with a current tool."),
    ]  # fmt: skip


def histograms(frame: pd.DataFrame) -> np.ndarray:
    """int64 [N, 256]: pixels by raw id of every pair; zeros where there is no readable label map."""
    rows = [[0] * 256 if h is None else h for h in frame["histogram"]]
    return np.array(rows, dtype=np.int64).reshape(-1, 256)


def class_pixels(frame: pd.DataFrame, card: Card) -> np.ndarray:
    """int64 [N, C]: pixels by class index of every pair."""
    return histograms(frame)[:, [info.id for info in card.classes]]


def _twins(frame: pd.DataFrame) -> tuple[list[str | None], list[str | None]]:
    """The first photo with the same pixels as each row's: in the other split, and before it in its own."""
    first = frame.drop_duplicates(["split", "image_sha256"]).set_index(["split", "image_sha256"])["image"].to_dict()
    across: list[str | None] = []
    within: list[str | None] = []
    for split, sha256, image in zip(frame["split"], frame["image_sha256"], frame["image"], strict=True):
        other = first.get(("val" if split == "train" else "train", sha256))
        own = first.get((split, sha256))
        across.append(other if sha256 else None)
        within.append(own if sha256 and own != image else None)
    return across, within


def facts(frame: pd.DataFrame, card: Card) -> pd.DataFrame:
    """What the suite looks at: a row a pair, columns of the index and those that the card adds to it."""
    counts, classes = histograms(frame), class_pixels(frame, card)
    unknown = (counts > 0) & (card.id_table < 0)
    train = (frame["split"] == "train").to_numpy()
    untrained = (classes > 0) & ~(classes[train] > 0).any(axis=0) & ~card.void
    height, width = card.size
    across, within = _twins(frame)

    def texts(values: list[str | None]) -> pd.Series:
        return pd.Series(values, index=frame.index, dtype=object)

    def listed(flags: np.ndarray, told: Callable[[int, int], str]) -> pd.Series:
        return texts([", ".join(told(i, int(j)) for j in np.flatnonzero(row)) or None for i, row in enumerate(flags)])

    def where_read(values: np.ndarray) -> pd.Series:
        return pd.Series(values, index=frame.index, dtype="Int64").where(frame["histogram"].notna())

    def size(kind: str) -> pd.Series:
        across, down = frame[f"{kind}_width"], frame[f"{kind}_height"]
        return (across.astype(str) + "x" + down.astype(str)).where(across.notna())

    return frame[["sample_id", "split", "image", "label", "fault", "note"]].assign(
        image_size=size("image"),
        label_size=size("label"),
        unknown_ids=listed(unknown, lambda i, j: f"id {j} ({counts[i, j]} pixels)"),
        labelled_pixels=where_read(counts.sum(axis=1) - classes[:, card.void].sum(axis=1)),
        ids_present=where_read((counts > 0).sum(axis=1)),
        untrained=listed(untrained, lambda i, j: card.classes[j].name),
        twin_across=texts(across),
        twin_within=texts(within),
        stretch=(frame["image_width"] / frame["image_height"]) * (height / width),
    )


def _run(table: pd.DataFrame, expectations: list[Any]) -> list[Any]:
    """Great Expectations' results, in the order of the expectations."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("index").add_dataframe_asset("pairs")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    for position, expectation in enumerate(expectations):
        expectation.meta = {"position": position}  # the results come back in another order
    outcome = batch.validate(
        gx.ExpectationSuite("pairs", expectations=expectations),
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["sample_id"],
            "return_unexpected_index_query": False,
        },
    )
    return sorted(outcome.results, key=lambda result: result.expectation_config.meta["position"])


def validate(frame: pd.DataFrame, card: Card) -> list[Finding]:
    """The expectations that the index does not meet, errors first."""
    table, checks, findings = facts(frame, card), suite(card), []
    rows: dict[Any, dict[Any, Any]] = {row["sample_id"]: row for row in table.to_dict("records")}
    results = _run(table, [check.expectation for check in checks])
    for check, result in zip(checks, results, strict=True):
        if result.success:
            continue
        if not result.result:  # the expectation itself failed to run
            raise RuntimeError(f"{check.name}: {result.exception_info}")
        samples = [row["sample_id"] for row in result.result.get("unexpected_index_list", [])]
        details = [check.tells.format(**rows[sample]) for sample in samples]
        details = details or [check.tells.format(**result.result)]
        findings.append(Finding(check.name, check.severity, len(details), check.reason, check.remedy, samples, details))
    return findings


def raise_on_errors(findings: list[Finding]) -> None:
    """UserError that lists every error: what, how many, the first files, the remedy."""
    errors = [finding for finding in findings if finding.severity == "error"]
    lines = []
    for finding in errors:
        lines.append(f"not met: {finding.expectation} ({finding.count}x). {finding.reason}")
        lines += [f"    {detail}" for detail in finding.details[:SHOWN]]
        if finding.count > SHOWN:
            lines.append(f"    and {finding.count - SHOWN} more")
        lines.append(f"  {finding.remedy}")
    if errors:
        raise UserError("\n".join(["the raw pairs cannot be trained on", *lines]))


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}
.error{color:#b00020}.warning{color:#8a5a00}ul{font:13px monospace;max-height:20rem;overflow:auto}
.bar{height:.7rem;border:1px solid #0003}td.n{text-align:right;font-variant-numeric:tabular-nums}
"""


def _findings_html(findings: list[Finding]) -> str:
    parts = []
    for finding in findings:
        lines = [f"<li>{escape(detail)}</li>" for detail in finding.details[:LISTED]]
        if finding.count > LISTED:
            lines.append(f"<li>and {finding.count - LISTED} more: findings.json</li>")
        parts.append(
            f'<h3 class="{finding.severity}">{finding.severity}: not met: {escape(finding.expectation)} '
            f"({finding.count})</h3><p>{escape(finding.reason)} <b>{escape(finding.remedy)}</b></p>"
            f"<ul>{''.join(lines)}</ul>"
        )
    return "".join(parts) or "<p>None: every expectation is met.</p>"


def _classes_html(frame: pd.DataFrame, card: Card) -> str:
    pixels = class_pixels(frame, card)
    splits = sorted(card.splits)
    shares = np.stack([pixels[(frame["split"] == split).to_numpy()].sum(axis=0) for split in splits])
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)  # of the pixels whose id is in the card
    rows = []
    for index, info in enumerate(card.classes):
        cells = "".join(
            f'<td class="n">{share:.3%}</td><td style="width:14rem"><div class="bar" '
            f'style="width:{share / max(shares.max(), 1e-9):.1%};background:rgb{info.color}"></div></td>'
            for share in shares[:, index]
        )
        kind = "void" if info.void else "" if info.evaluate else "not scored"
        rows.append(f"<tr><td>{info.id}</td><td>{escape(info.name)}</td><td>{kind}</td>{cells}</tr>")
    heads = "".join(f'<th colspan="2">{split} ({escape(card.splits[split])})</th>' for split in splits)
    return f"<table><tr><th>id</th><th>class</th><th></th>{heads}</tr>{''.join(rows)}</table>"


def write_report(findings: list[Finding], frame: pd.DataFrame, card: Card, folder: Path) -> None:
    """`report.html`, one page that needs no network, and `findings.json` with every finding whole."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {split: int((frame["split"] == split).sum()) for split in sorted(card.splits)}
    content = {"dataset": card.name, "pairs": pairs, "findings": [asdict(finding) for finding in findings]}
    (folder / "findings.json").write_text(json.dumps(content, indent=2) + "\n")
    counts = ", ".join(f"{count} pairs in {split}" for split, count in pairs.items())
    (folder / "report.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(card.name)}: data report</title><style>{_STYLE}</style>"
        f"<h1>{escape(card.title)}</h1><p>{counts}. Licence: {escape(card.licence)}.</p>"
        f"<h2>Findings</h2>{_findings_html(findings)}"
        f"<h2>Share of pixels by class</h2>{_classes_html(frame, card)}</html>\n"
    )

"""The paper's tables: what it prints, beside what our own runs came to.

A row is a setting of the training, a column a score of ours by the form of its name. Runs are matched by how they were
trained, so whatever has been run fills its place in every table where it belongs; the rest stays blank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The settings in which the rows differ, and those of the paper's own method.
OURS: dict[str, object] = {
    "generator": "dp", "discriminator": "dp", "patch_at": "encoder", "feature_at": "decoder", "concat_s0": True,
    "labelmix": True,
}  # fmt: skip
OASIS_D = {"discriminator": "oasis", "patch_at": "none", "feature_at": "none"}
SPADE = {"generator": "spade", "discriminator": "patch", "feature_at": "encoder", "labelmix": False}
OASIS = {"generator": "oasis", **OASIS_D}


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, how it is trained (beside `OURS`), and what the paper prints, by column."""

    name: str
    settings: Mapping[str, object]
    paper: Sequence[str]

    @property
    def trained(self) -> dict[str, object]:
        return {**OURS, **self.settings}


@dataclass(frozen=True)
class Table:
    """`columns`: what the paper calls a score, and a pattern of ours; `of` says what the paper's were taken on.

    `evaluate`: what the columns need of the evaluation's settings, beside its defaults.
    """

    key: str
    title: str
    of: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    evaluate: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished run of ours: how it was trained, its scores (and `NAME_low`, `NAME_high`), its seconds."""

    name: str
    trained: Mapping[str, object]
    scores: Mapping[str, float]
    seconds: float | None


# With the FID Inception network where it was at hand, else with the offline features; so with the judges.
_FEATURES, _JUDGE = "(inception|lite0)", r"([a-z]+\d*(_\d+)?)"
_FID_MIOU = [("FID", f"fid_{_FEATURES}"), ("mIoU", f"miou_{_JUDGE}")]
_ABLATION = [*_FID_MIOU, ("obj-mIoU", f"obj_miou_{_JUDGE}")]

TABLES = [
    Table("1", "Comparison to the state of the art", "Cityscapes", _FID_MIOU, [
        Row("SPADE", SPADE, ["71.8", "62.3"]),
        Row("OASIS", OASIS, ["47.7", "69.3"]),
        Row("DP-GAN", {}, ["44.1", "73.6"]),
    ]),
    Table("3", "FID over five noises: mean ± deviation", "Cityscapes", [("FID", f"fid_{_FEATURES}")], [
        Row("OASIS", OASIS, ["48.1±0.18"]),
        Row("DP-GAN", {}, ["44.6±0.17"]),
    ], {"noise_seeds": 5}),
    Table("4a", "Generator / discriminator", "Cityscapes", _ABLATION, [
        Row("OASIS / OASIS", OASIS, ["47.7", "69.3", "61.5"]),
        Row("OASIS / DP", {"generator": "oasis"}, ["47.9", "74.0", "67.4"]),
        Row("DP / OASIS", OASIS_D, ["45.4", "69.9", "62.0"]),
        Row("DP / DP", {}, ["44.1", "73.6", "66.9"]),
    ]),
    Table("4b", "Where the patch loss acts", "Cityscapes", _ABLATION, [
        Row("nowhere", {"patch_at": "none"}, ["49.2", "67.9", "59.5"]),
        Row("decoder", {"patch_at": "decoder"}, ["44.5", "72.1", "64.4"]),
        Row("encoder and decoder", {"patch_at": "both"}, ["44.3", "72.8", "66.4"]),
        Row("encoder", {}, ["44.1", "73.6", "66.9"]),
    ]),
    Table("4c", "Where features are matched", "Cityscapes", _ABLATION, [
        Row("nowhere", {"feature_at": "none"}, ["44.1", "69.9", "62.1"]),
        Row("encoder", {"feature_at": "encoder"}, ["44.4", "69.2", "60.8"]),
        Row("encoder and decoder", {"feature_at": "both"}, ["45.0", "73.8", "66.8"]),
        Row("decoder", {}, ["44.1", "73.6", "66.9"]),
    ]),
    Table("S1", "FID of objects by size", "Cityscapes",
          [(size, f"fid_{_FEATURES}_objects_{size}") for size in ("all", "large", "medium", "small")], [
        Row("SPADE", SPADE, ["33.4", "84.3", "63.3", "36.8"]),
        Row("OASIS", OASIS, ["35.0", "98.6", "79.9", "37.6"]),
        Row("DP-GAN", {}, ["24.5", "77.6", "57.5", "27.1"]),
    ], {"objects": True}),
    Table("S2", "FID by resolution", "Cityscapes",
          [(f"{size}x", f"fid_{_FEATURES}{suffix}") for size, suffix in (("0.5", "_x0.5"), ("1", ""), ("2", "_x2"))], [
        Row("SPADE", SPADE, ["99.9", "71.8", "145.9"]),
        Row("OASIS", OASIS, ["91.8", "47.7", "115.5"]),
        Row("DP-GAN", {}, ["85.0", "44.1", "96.1"]),
    ], {"resolutions": "[0.5,2]"}),
    Table("S3", "Without LabelMix, without s_0", "Cityscapes", _FID_MIOU, [
        Row("w/o LabelMix", {"labelmix": False}, ["46.8", "70.9"]),
        Row("w/o cat", {"concat_s0": False}, ["44.8", "71.2"]),
        Row("DP-GAN", {}, ["44.1", "73.6"]),
    ]),
    Table("S5", "What a picture costs", "Cityscapes, a TITAN RTX",
          [("M parameters", "cost_m_parameters"), ("ms", "cost_ms"), ("time / DP-GAN's", "cost_of_dp")], [
        Row("SPADE", SPADE, ["93.0", "70.8", "1.37"]),
        Row("OASIS", OASIS, ["71.1", "60.5", "1.17"]),
        Row("DP-GAN", {}, ["69.5", "51.8", "1.00"]),
    ]),
]  # fmt: skip


def score_named(pattern: str, scores: Mapping[str, float]) -> str | None:
    """The name of the score that a column means: of several, the one that is first in the alphabet (inception)."""
    return min((name for name in scores if re.fullmatch(pattern, name)), default=None)


def _ours(pattern: str, run: Run | None) -> str:
    name = score_named(pattern, run.scores) if run else None
    if run is None or name is None:
        return ""
    value = run.scores[name]
    text = f"{value:.2f}" if name.startswith("cost_") else f"{value:.1f}"
    if f"{name}_deviation" in run.scores:
        text += f"±{run.scores[f'{name}_deviation']:.2f}"
    if f"{name}_low" in run.scores:
        text += f" [{run.scores[f'{name}_low']:.1f}, {run.scores[f'{name}_high']:.1f}]"
    return text


def render(runs: Sequence[Run], dataset: str) -> str:
    """All tables in Markdown; of several runs that were trained alike, the last one given counts."""
    parts = []
    for table in TABLES:
        found = [_newest(row, runs) for row in table.rows]
        scored = [
            next((name for run in found if run and (name := score_named(pattern, run.scores))), None)
            for _, pattern in table.columns
        ]
        ours = [
            title if name is None or name.startswith("cost_") else name
            for name, (title, _) in zip(scored, table.columns, strict=True)
        ]
        head = [
            "", *(f"{title}, paper" for title, _ in table.columns), *(f"{title}, ours" for title in ours), "minutes"
        ]  # fmt: skip
        lines = [f"**Table {table.key}. {table.title}** (paper: {table.of}; ours: {dataset})", ""]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for row, run in zip(table.rows, found, strict=True):
            minutes = f"{run.seconds / 60:.1f}" if run and run.seconds else ""
            cells = [row.name, *row.paper, *(_ours(pattern, run) for _, pattern in table.columns), minutes]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _newest(row: Row, runs: Sequence[Run]) -> Run | None:
    return next((run for run in reversed(runs) if dict(run.trained) == row.trained), None)


@dataclass(frozen=True)
class Experiment:
    """What fills a row: the settings of training and evaluation that are not the method's own, or the defaults."""

    name: str
    train: Mapping[str, object]
    evaluate: Mapping[str, object]


def missing(runs: Sequence[Run]) -> list[Experiment]:
    """What no run has trained yet, or not evaluated as a table needs, each once, with all that its tables need."""
    wanted: list[Experiment] = []
    for table in TABLES:
        for row in table.rows:
            settings = {key: value for key, value in row.trained.items() if value != OURS[key]}
            if not _filled(table, row, runs) and settings not in [other.train for other in wanted]:
                name = re.sub(r"[^a-z0-9]+", "-", f"table-{table.key} {row.name}".lower()).strip("-")
                everywhere = [other.evaluate for other in TABLES if row.trained in [one.trained for one in other.rows]]
                wanted.append(Experiment(name, settings, {k: v for needed in everywhere for k, v in needed.items()}))
    return wanted


def _filled(table: Table, row: Row, runs: Sequence[Run]) -> bool:
    """Whether a run has a score, with its deviation where the table asks for several noises, in every column."""
    run = _newest(row, runs)
    if run is None:
        return False
    names = [score_named(pattern, run.scores) for _, pattern in table.columns]
    return None not in names and ("noise_seeds" not in table.evaluate or f"{names[0]}_deviation" in run.scores)

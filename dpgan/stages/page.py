"""The evaluation's page, from what the evaluation left in hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpgan.config import TrainSettings
from dpgan.labels import Card

if TYPE_CHECKING:
    from dpgan.evaluation.efficiency import Cost
    from dpgan.evaluation.engine import Engine
    from dpgan.evaluation.evaluate import Evaluator, Painter, Scores
    from dpgan.evaluation.intervals import Estimate
    from dpgan.evaluation.page import Curve, Painted, Table
    from dpgan.models.generators import Generator

ROWS, NOISES, EXTREMES = 6, 4, 4


@dataclass(frozen=True)
class Subject:
    """What the page is about: images of the validation label maps, and what is told of where they are from."""

    name: str  # its set among the scores
    summary: str
    paint: Painter
    noises: int  # of which it shows what each paints
    identity: Mapping[str, str]
    curves: Sequence[Curve] = ()
    tables: Sequence[Table] = ()


def noises(generator: Generator) -> int:
    """How many noises the page shows of a generator: one where noise changes nothing."""
    return NOISES if generator.noise_channels else 1


def write_evaluation_page(path: Path, evaluator: Evaluator, subject: Subject, sets: Mapping[str, Scores]) -> None:
    """Scores with intervals, classes, curves, samples, the best and worst images, tables, and what was evaluated.

    `sets`: scores by name, in the order of the page; "floor", "ceiling" and the subject's own are among them.
    """
    from dpgan.evaluation.page import ClassScore, Content, Score, write_page

    card, judge, ours = evaluator.card, evaluator.judge.name, sets[subject.name]
    main = [name for name in ours if re.fullmatch(r"(fid|kid|miou|obj_miou|accuracy)_[a-z]+\d*(_\d+)?", name)]
    shown = ["floor", subject.name, "ceiling"]
    write_page(
        Content(
            title=card.title,
            summary=f"{len(evaluator.val.ids)} validation label maps; {subject.summary}",
            identity=subject.identity,
            ours=subject.name,
            scores={
                name: {key: Score(s[key].value, *s[key].interval) for key in main if key in s}
                for name, s in sets.items()
            },
            classes=[
                ClassScore(info.name, info.color, {
                    name: sets[name][key].value if key in sets[name] else None for name in shown
                })
                for info in (card.classes[i] for i in card.evaluated)
                if any((key := f"iou_{judge}/{info.name}") in sets[name] for name in shown)
            ],
            curves=subject.curves,
            samples=_samples(evaluator, subject),
            extremes=_extremes(evaluator, subject),
            tables=[*_further(sets, shown, subject.name), *subject.tables],
        ),
        path,
    )  # fmt: skip


def protocol_facts(protocol: Mapping[str, Any], engine: Engine) -> dict[str, str]:
    """What the scores were taken with, for the page."""
    return {
        "validation data": protocol["data_hash"],
        "features": f"{protocol['features']}, sha256 {protocol['features_sha256'][:16]}",
        "judge": f"{protocol['judge']}, sha256 {protocol['judge_sha256'][:16]}",
        "evaluated on": f"{engine.place.device.type}, {engine.device_name()}",
    }


def trained_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Where a generator of ours is from, for the page."""
    settings, facts = TrainSettings.model_validate(manifest["settings"]), manifest["facts"]
    return {
        "MLflow run": manifest["run_id"],
        "commit": facts["git.commit"] + (" with changes" if facts["git.dirty"] == "true" else ""),
        "raw pairs": facts["dataset_hash"],
        "trained on": facts["data_hash"],
        "preset": settings.preset,
        "training": f"{manifest['images']} images, {manifest['images_per_s']:.1f} a second, batch {settings.batch}, "
        f"{manifest['restarts']} restarts",
        "kept": f"the checkpoint at {manifest['best']['images']} images, by KID on hold-out pairs",
    }


def _samples(evaluator: Evaluator, subject: Subject) -> list[Painted]:
    """Label map | real | generated under several noises, for label maps spread evenly over the split."""
    n = len(evaluator.val.ids)
    chosen = np.unique(np.linspace(0, n - 1, min(ROWS, n)).round().astype(int))
    return _painted(evaluator, subject, chosen, subject.noises, [evaluator.val.ids[i] for i in chosen])


def _extremes(evaluator: Evaluator, subject: Subject) -> dict[str, list[Painted]]:
    """The images in which the judge reads the most, and the least, of the pixels right."""
    right = evaluator.right
    order = np.argsort(-np.where(np.isfinite(right), right, 0), kind="stable")
    found = {}
    for title, chosen in (("Best by the judge", order[:EXTREMES]), ("Worst by the judge", order[::-1][:EXTREMES])):
        captions = [f"{evaluator.val.ids[i]}: {right[i]:.1f}% of the pixels read right" for i in chosen]
        found[title] = _painted(evaluator, subject, chosen, 1, captions)
    return found


def _painted(
    evaluator: Evaluator, subject: Subject, chosen: np.ndarray, noises: int, captions: list[str]
) -> list[Painted]:
    from dpgan.evaluation.page import Painted

    first = evaluator.settings.noise_seed
    fakes = [subject.paint(chosen, seed) for seed in range(first, first + noises)]
    rows = []
    for row, (number, caption) in enumerate(zip(chosen, captions, strict=True)):
        images = {
            "label map": evaluator.card.colorize(evaluator.val.labels[number]),
            "real photo": np.asarray(evaluator.val.images[number]),
        }
        images |= {"generated" if not s else f"noise {s + 1}": fake[row] for s, fake in enumerate(fakes)}
        rows.append(Painted(caption, images))
    return rows


def _further(sets: Mapping[str, Scores], shown: list[str], ours: str) -> list[Table]:
    """What else was measured: objects by size, resolutions, diversity."""
    from dpgan.evaluation.page import Table, number

    names = [name for name in sets[ours] if re.search(r"_objects_|_x[\d.]+$|^diversity_", name)]
    if not names:
        return []
    columns = [one for one in shown if any(name in sets[one] for name in names)]

    def cell(score: Estimate | None) -> str:
        if score is None:
            return ""
        low, high = score.interval
        return f"{number(score.value)} [{number(low)}, {number(high)}]"

    rows = [[name, str(sets[ours][name].n), *(cell(sets[one].get(name)) for one in columns)] for name in names]
    note = "Objects are cropped by their bounding boxes; FIDs compare within a line only, for their numbers differ."
    return [Table("Objects, resolutions, diversity", ["", "N", *columns], rows, note)]


def measured_costs(generator: Generator, settings: TrainSettings, card: Card, engine: Engine) -> dict[str, Cost]:
    """What a picture costs, by generator, at the settings' widths; dp, the first, is the measure of the others.

    generator: one of these widths.
    """
    from dpgan.evaluation import portions
    from dpgan.evaluation.efficiency import WITHIN_S, Costs
    from dpgan.models.generators import GENERATORS

    print(f"evaluate  what a picture costs: some {WITHIN_S:g} s at most", flush=True)
    arguments = {
        kind: settings.model_copy(update={"generator": kind}).generator_arguments(card.num_classes)
        for kind in GENERATORS
    }
    painting = portions.painting(generator, card.size[0] * card.size[1])
    return engine.once(Costs(arguments, card.size), None, portions.worker([generator] * len(arguments), painting, 1))


def costs_table(found: Mapping[str, Cost], card: Card, engine: Engine) -> Table:
    """Parameters, FLOPs, latency and memory, as supplement, table 5."""
    from dpgan.evaluation.efficiency import WITHIN_S
    from dpgan.evaluation.page import Table
    from dpgan.models.generators import GENERATORS

    rows = [
        [kind, f"{c.parameters / 1e6:.2f} M", f"{c.flops / 1e9:.2f} G", f"{c.latency_ms:.1f} ms",
         f"[{c.latency_ms_low:.1f}, {c.latency_ms_high:.1f}]", f"{c.relative:.2f}", f"{c.peak_memory / 1e6:.0f} MB"]
        for kind, c in found.items()
    ]  # fmt: skip
    left_out = ", ".join(kind for kind in GENERATORS if kind not in found)
    return Table(
        "What a picture costs",
        ["generator", "parameters", "FLOPs", "latency", "quartiles", "time / DP-GAN's", "peak memory"],
        rows,
        f"One label map of {card.size[1]}x{card.size[0]} on {engine.place.device.type}, taking turns in "
        f"{next(iter(found.values())).rounds} rounds, by untrained generators of these widths. A multiplication and an "
        "addition are two FLOPs." + (f" Not measured within {WITHIN_S:g} s: {left_out}." if left_out else ""),
    )

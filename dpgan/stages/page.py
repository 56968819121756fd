"""The evaluation's page, from what the evaluation left in hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpgan.config import TrainSettings
from dpgan.labels import Card

if TYPE_CHECKING:
    import torch

    from dpgan.evaluation.evaluate import Evaluator, Scores
    from dpgan.evaluation.page import Painted, Table
    from dpgan.models.generators import Generator

ROWS, NOISES, EXTREMES = 6, 4, 4
CURVES = ("loss/G_total", "loss/D_total", "holdout/kid_lite0", "throughput/images_per_s")


def write_evaluation_page(
    path: Path,
    evaluator: Evaluator,
    generator: Generator,
    sets: Mapping[str, Scores],
    history: Mapping[str, list[tuple[float, float]]],
    manifest: Mapping[str, Any],
    protocol: Mapping[str, Any],
) -> None:
    """Scores with intervals, classes, curves, samples, the best and worst images, costs, and what was evaluated.

    `sets`: scores of floor, last, best, ceiling; `generator`: the best. `history`: (images, value) by metric.
    """
    from dpgan.evaluation.page import ClassScore, Content, Curve, Score, write_page

    card, n = evaluator.card, len(evaluator.val.ids)
    judge = protocol["judge"]
    main = [name for name in sets["best"] if re.fullmatch(r"(fid|kid|miou|obj_miou|accuracy)_[a-z]+\d*(_\d+)?", name)]
    write_page(
        Content(
            title=card.title,
            summary=f"{n} validation label maps, noise seeds {', '.join(map(str, evaluator.seeds))}; "
            f"the run is {manifest['run_id']}.",
            identity=_identity(manifest, protocol, evaluator.device),
            scores={
                name: {key: Score(s[key].value, *s[key].interval) for key in main if key in s}
                for name, s in ((name, sets[name]) for name in ("floor", "last", "best", "ceiling"))
            },
            classes=[
                ClassScore(info.name, info.color, {
                    name: sets[name][key].value if key in sets[name] else None for name in ("floor", "best", "ceiling")
                })
                for info in (card.classes[i] for i in card.evaluated)
                if any((key := f"iou_{judge}/{info.name}") in sets[name] for name in sets)
            ],
            curves=[Curve(name, points, manifest["best"]["images"]) for name, points in history.items()],
            samples=_samples(evaluator, generator),
            extremes=_extremes(evaluator, generator),
            tables=[*_further(sets), _costs(manifest, card, evaluator.device)],
        ),
        path,
    )  # fmt: skip


def _identity(manifest: Mapping[str, Any], protocol: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    from dpgan.hardware import device_name

    settings, facts = TrainSettings.model_validate(manifest["settings"]), manifest["facts"]
    return {
        "MLflow run": manifest["run_id"],
        "commit": facts["git.commit"] + (" with changes" if facts["git.dirty"] == "true" else ""),
        "raw pairs": facts["dataset_hash"],
        "prepared data": facts["data_hash"],
        "preset": settings.preset,
        "trained on": f"{manifest['images']} images, {manifest['images_per_s']:.1f} a second, batch {settings.batch}, "
        f"{manifest['restarts']} restarts",
        "kept": f"the checkpoint at {manifest['best']['images']} images, by KID on hold-out pairs",
        "features": f"{protocol['features']}, sha256 {protocol['features_sha256'][:16]}",
        "judge": f"{protocol['judge']}, sha256 {protocol['judge_sha256'][:16]}",
        "evaluated on": f"{device.type}, {device_name(device)}",
    }


def _samples(evaluator: Evaluator, generator: Generator) -> list[Painted]:
    """Label map | real | generated under several noises, for label maps spread evenly over the split."""
    n = len(evaluator.val.ids)
    chosen = np.unique(np.linspace(0, n - 1, min(ROWS, n)).round().astype(int))
    return _painted(evaluator, generator, chosen, NOISES, [evaluator.val.ids[i] for i in chosen])


def _extremes(evaluator: Evaluator, generator: Generator) -> dict[str, list[Painted]]:
    """The images in which the judge reads the most, and the least, of the pixels right."""
    right = evaluator.right
    order = np.argsort(-np.where(np.isfinite(right), right, 0), kind="stable")
    found = {}
    for title, chosen in (("Best by the judge", order[:EXTREMES]), ("Worst by the judge", order[::-1][:EXTREMES])):
        captions = [f"{evaluator.val.ids[i]}: {right[i]:.1f}% of the pixels read right" for i in chosen]
        found[title] = _painted(evaluator, generator, chosen, 1, captions)
    return found


def _painted(
    evaluator: Evaluator, generator: Generator, chosen: np.ndarray, noises: int, captions: list[str]
) -> list[Painted]:
    from dpgan.evaluation.page import Painted

    first = evaluator.settings.noise_seed
    fakes = [evaluator.painted(generator, chosen, seed) for seed in range(first, first + noises)]
    rows = []
    for row, (number, caption) in enumerate(zip(chosen, captions, strict=True)):
        images = {
            "label map": evaluator.card.colorize(evaluator.val.labels[number]),
            "real photo": np.asarray(evaluator.val.images[number]),
        }
        images |= {"generated" if not s else f"noise {s + 1}": fake[row] for s, fake in enumerate(fakes)}
        rows.append(Painted(caption, images))
    return rows


def _further(sets: Mapping[str, Scores]) -> list[Table]:
    """What else was measured: objects by size, resolutions, diversity."""
    from dpgan.evaluation.page import Table, number

    names = [name for name in sets["best"] if re.search(r"_objects_|_x[\d.]+$|^diversity_", name)]
    if not names:
        return []
    rows = [
        [name, *(number(s[name].value) if name in s else "" for s in (sets["floor"], sets["best"], sets["ceiling"]))]
        for name in names
    ]
    note = "Objects are cropped by their bounding boxes; FIDs compare within a line only, for their numbers differ."
    return [Table("Objects, resolutions, diversity", ["", "floor", "best", "ceiling"], rows, note)]


def _costs(manifest: Mapping[str, Any], card: Card, device: torch.device) -> Table:
    """Parameters, FLOPs, latency and memory, beside the other generators at the same widths (supplement, table 5)."""
    from dpgan.evaluation.efficiency import costs
    from dpgan.evaluation.page import Table
    from dpgan.models.generators import GENERATORS, build_generator

    settings = TrainSettings.model_validate(manifest["settings"])
    kinds = sorted(GENERATORS, key=lambda kind: kind != settings.generator)  # ours first: the measure of the others
    generators = {
        kind: build_generator(
            **settings.model_copy(update={"generator": kind}).generator_arguments(card.num_classes)
        ).eval().to(device)
        for kind in kinds
    }  # fmt: skip
    found = costs(generators, card.size, device)
    rows = [
        [kind, f"{c.parameters / 1e6:.2f} M", f"{c.flops / 1e9:.2f} G", f"{c.latency_ms:.1f} ms",
         f"[{c.latency_ms_low:.1f}, {c.latency_ms_high:.1f}]", f"{c.relative:.2f}", f"{c.peak_memory / 1e6:.0f} MB"]
        for kind, c in found.items()
    ]  # fmt: skip
    return Table(
        "What a picture costs",
        ["generator", "parameters", "FLOPs", "latency", "quartiles", "against the first", "peak memory"],
        rows,
        f"One label map of {card.size[1]}x{card.size[0]} on this machine's {device.type}, taking turns; the others are "
        "untrained, of the same widths. A multiplication and an addition are two FLOPs.",
    )

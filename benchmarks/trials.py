"""How often the gate tells two equal models apart: `python -m benchmarks.trials`, tables in `docs/statistics.md`.

A trial draws label maps, and for each the features and the judge's reading of two images from one distribution. A
verdict other than "cannot tell" is wrong, so the shares below should be 5% at most.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from dpgan.evaluation.fid import fid, fid_contributions, kid_with_contributions
from dpgan.evaluation.intervals import compare_scores, of_sums, of_tables
from dpgan.evaluation.readings import Measure, accuracy, class_iou, mean_iou
from dpgan.registry.gate import Evaluation, decide

FEATURES = 128
# Classes by the share of label maps that have them, and their pixels there.
PRESENCE = np.array([1, 1, 0.95, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01])
PIXELS = np.array([3000, 1500, 800, 500, 300, 200, 100, 400, 80, 60, 200, 50, 100])
NAMES = [f"iou_judge/{i}: in {share:.0%} of the label maps" for i, share in enumerate(PRESENCE)]


def iou_of(row: int) -> Measure:
    return lambda tables: class_iou(tables[..., row, :])


MEASURES: dict[str, Measure] = {"miou_judge": mean_iou, "accuracy_judge": accuracy}
MEASURES |= {name: iou_of(row) for row, name in enumerate(NAMES)}
PROMOTED = "the gate lets the second one pass"


class LabelMaps(NamedTuple):
    """N label maps: what is in them decides the photo's features, and how well a judge reads their images."""

    content: np.ndarray  # float [N, FEATURES]
    truth: np.ndarray  # int [N, K], pixels
    ease: np.ndarray  # float [N, K], share of the pixels that are read right


def label_maps(rng: np.random.Generator, n: int) -> LabelMaps:
    sizes = np.maximum(1, PIXELS * np.exp(0.8 * rng.normal(size=(n, len(PIXELS))))).astype(int)
    ease = 0.15 * rng.normal(size=(n, 1)) + np.linspace(0.85, 0.35, len(PIXELS))
    return LabelMaps(rng.normal(size=(n, FEATURES)), sizes * (rng.random(sizes.shape) < PRESENCE), ease)


@cache
def mixing() -> np.ndarray:
    """Most of the variance in few directions."""
    directions = np.linalg.qr(np.random.default_rng(9).normal(size=(FEATURES, FEATURES)))[0]
    return np.asarray(directions / np.arange(1, FEATURES + 1)[:, None] ** 0.5)


def features(z: np.ndarray) -> np.ndarray:
    """Skewed and not negative, as those of networks."""
    return np.asarray(np.maximum(z @ mixing(), 0) ** 1.3)


def evaluation(rng: np.random.Generator, maps: LabelMaps, photos: np.ndarray, skill: float) -> Evaluation:
    """The scores of a model; models of one skill are equal."""
    n = len(photos)
    images = features(0.7 * maps.content + (0.4 + skill) * rng.normal(size=maps.content.shape))
    ease = np.clip(maps.ease + skill + 0.12 * rng.normal(size=maps.truth.shape), 0.02, 0.98)
    hits = rng.binomial(maps.truth, ease)
    seen = rng.random(maps.truth.shape) < np.maximum(PRESENCE, 0.05)  # where it takes other pixels for the class
    wrong = rng.binomial(PIXELS // 3, np.clip(0.02 * np.exp(rng.normal(size=maps.truth.shape)), 0, 1)) * seen
    tables = np.stack([hits, maps.truth, hits + wrong], axis=-1)[None]
    scores = {
        "fid_features": of_sums([(fid(photos, images), fid_contributions(photos, images))], n),
        "kid_features": of_sums([kid_with_contributions(photos, images)], n),
        **of_tables(tables, MEASURES),
    }
    scores = {name: score for name, score in scores.items() if np.isfinite(score.value)}
    return Evaluation(scores, True, {"features": "features", "judge": "judge"})


def floor_of(model: Evaluation) -> Evaluation:
    """One that the model beats beyond doubt."""
    fid_name, kid_name, miou = model.main
    far = {fid_name: 1e9, kid_name: 1e9, miou: -1e9}
    return Evaluation({name: replace(model.scores[name], value=far[name]) for name in far}, True, model.protocol)


def told_apart(n: int, trial: int, more_skill: float = 0.0) -> dict[str, bool]:
    """By score, whether a verdict is given on two models, of which the second one has more skill; and the gate's."""
    rng = np.random.default_rng([n, trial])
    maps = label_maps(rng, n)
    photos = features(maps.content)
    first, second = (evaluation(rng, maps, photos, skill) for skill in (0.0, more_skill))
    found = {name: c.verdict != "cannot tell" for name, c in compare_scores(second.scores, first.scores).items()}
    return {**found, PROMOTED: decide(second, floor_of(second), first, 10).passed}


def shares(n: int, trials: int, more_skill: float = 0.0) -> dict[str, float]:
    """How often that is so, by score. A class that is in no label map of a trial counts as one with no difference."""
    results = [told_apart(n, trial, more_skill) for trial in range(trials)]
    names = [f"{kind}_features" for kind in ("fid", "kid")] + [*MEASURES, PROMOTED]
    return {name: float(np.mean([result.get(name, False) for result in results])) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trials", description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--n", type=int, nargs="+", default=[64, 500, 2000], help="label maps")
    parser.add_argument("--more-skill", type=float, default=0.0, help="of the second model: how often that is found")
    arguments = parser.parse_args()
    started = time.monotonic()
    found = [shares(n, arguments.trials, arguments.more_skill) for n in arguments.n]
    table = Table("told apart", *(f"N = {n}" for n in arguments.n), box=None, pad_edge=False)
    for name in found[0]:
        table.add_row(name, *(f"{one[name]:.1%}" for one in found))
    console = Console(width=120)
    console.print(table)
    console.print(f"{arguments.trials} trials, {time.monotonic() - started:.0f} s", highlight=False)


if __name__ == "__main__":
    main()

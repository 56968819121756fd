"""How far a score can be trusted: intervals by resampling the label maps, and two models on the same ones.

What is asked: had the validation split held other N label maps of the same kind, how far would the score move? So label
maps are drawn with replacement (Efron, 1979), each with its photo and its images under all noise seeds.

mIoU and accuracy are computed again on every resample. FID and KID must not be: a resample holds 0.63 N different
images, and both read the repeated ones as a narrower distribution. In simulations on 60 images of 200 features the mean
of such FIDs lay 1 to 7 standard deviations above the FID itself, and a percentile interval can miss it altogether. They
are taken to first order instead, as sums over images (`fid_contributions`, `kid_contributions`), which repetition does
not bias. Where both sets have one distribution the first order vanishes, and the intervals of FID come out too wide, by
a half in simulations: cautious, not wrong.

Held against photos (toyscapes, blurred with their class colours, lite0): 30 sets of 50 had FIDs with a standard
deviation of 5.5, 5.2 predicted, and KIDs with one of 13, 12 predicted. For fewer than some 30 label maps, expect
intervals that are a tenth too narrow and more.

The interval is for the score at this N: FID falls with N, and no resampling tells its value at another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # of the resamples: scores compare only where it is equal, so it is no setting
LOWER_IS_BETTER = ("fid", "kid")  # beginnings of scores' names; of all others higher is better


@lru_cache(maxsize=2)
def draws(n: int, count: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each of n label maps is in each resample: float64 [count, n], a function of its arguments alone."""
    counts = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
    counts.flags.writeable = False
    return counts


@dataclass(frozen=True)
class Estimate:
    """A score, with what it would have been on resampled label maps."""

    value: float  # the mean over the noise seeds
    replicates: np.ndarray  # float64 [RESAMPLES]: the same, resample by resample
    n: int  # images a seed
    seeds: int = 1
    deviation: float | None = None  # standard deviation over the seeds, where there are several

    @property
    def interval(self) -> tuple[float, float]:
        """Percentile interval of the value at `LEVEL`."""
        return _interval(self.replicates)

    def record(self) -> dict[str, Any]:
        """For JSON: value, low, high, n (images a seed), seeds (how many), and deviation where there are several."""
        low, high = self.interval
        facts = {"value": self.value, "low": low, "high": high, "n": self.n, "seeds": self.seeds}
        return facts if self.deviation is None else {**facts, "deviation": self.deviation}


def _interval(replicates: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    # NaN: a resample that lacks a class says nothing of its IoU.
    low, high = np.nanpercentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def _over_seeds(values: Sequence[float], replicates: np.ndarray, n: int) -> Estimate:
    """values: by seed [S]; replicates: [S, RESAMPLES]."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), replicates.mean(axis=0), n, len(values), deviation)


def of_sums(values: Sequence[float], contributions: Sequence[tuple[np.ndarray, ...]], n: int) -> Estimate:
    """The estimate of a score that is, to first order, its value and the mean of contributions by image.

    values: the score by noise seed. contributions: for each seed, an array [N] of mean 0 for every set of images that
    the score depends on; sets of one size are taken as lists over the same label maps, and drawn together.
    """
    moved = [
        value + sum(draws(len(part)) @ part / len(part) for part in parts)
        for value, parts in zip(values, contributions, strict=True)
    ]
    return _over_seeds(values, np.stack(moved), n)


def of_tables(tables: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """The estimate of a score of what a judge read, computed again on every resample.

    tables: int64 [S, N, K, 3] (`readings.tables`). score: of tables summed over images, [..., K, 3] -> [...].
    """
    seeds, n, *rest = tables.shape
    resampled = (draws(n) @ tables.reshape(seeds, n, -1).astype(np.float64)).reshape(seeds, -1, *rest)
    return _over_seeds(score(tables.sum(axis=1)).tolist(), score(resampled), n)


@dataclass(frozen=True)
class Comparison:
    """Ours less theirs, with its interval, and what that says of ours."""

    difference: float
    low: float
    high: float
    verdict: Literal["better", "worse", "cannot tell"]


def compare(ours: Estimate, theirs: Estimate, lower_is_better: bool) -> Comparison:
    """Two models on the same label maps and noise seeds: PAIRED, so what the label maps do to both falls out.

    `better` and `worse` are said where the interval of the difference leaves out 0: of two equal models one is called
    better or worse in 1 - LEVEL of the cases. Raises ValueError where they have not been scored on as many label maps;
    that it was the same ones, under the same noise seeds, is for the caller to see to (`evaluate.protocol`).
    """
    if ours.n != theirs.n:
        raise ValueError(f"a paired comparison needs the same label maps, not {ours.n} against {theirs.n}")
    low, high = _interval(ours.replicates - theirs.replicates)
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    if low > 0 or high < 0:
        verdict = "better" if (high < 0) == lower_is_better else "worse"
    return Comparison(ours.value - theirs.value, low, high, verdict)


def compare_scores(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> dict[str, Comparison]:
    """`compare`, every score that both have, by name."""
    common = [name for name in ours if name in theirs]
    return {name: compare(ours[name], theirs[name], name.startswith(LOWER_IS_BETTER)) for name in common}


def save_estimates(scores: Mapping[str, Estimate], path: Path) -> None:
    """All of them as one safetensors file: what a later paired comparison needs of a model."""
    facts = {k: {**asdict(score), "replicates": None} for k, score in scores.items()}
    save_file({k: score.replicates for k, score in scores.items()}, path, {"estimates": json.dumps(facts)})


def load_estimates(path: Path) -> dict[str, Estimate]:
    """What `save_estimates` wrote."""
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["estimates"])
        return {k: Estimate(**{**fields, "replicates": file.get_tensor(k)}) for k, fields in facts.items()}

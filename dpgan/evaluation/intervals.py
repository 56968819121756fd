"""How far a score can be trusted: intervals over the label maps, and two models compared on the same ones.

The question: if the validation split had held N other label maps of the same kind, how far would the score move? The
answer is the jackknife's (Tukey, 1958): leave out one label map after another, each with its photo and its images under
all noise seeds, and see how far the score moves. Scores of what a judge read are computed again without each of them.
FID and KID are taken to first order, as sums over images (`fid_contributions`, `kid_contributions`).

The interval is Student's t. Its degrees of freedom count the label maps that carry the error, less one: n' - 1, where
n' = (sum |p|)^2 / sum p^2 for the parts p of the label maps: k equal ones count k, whatever N is. So a class that is in
3 of 500 label maps is judged by 3.

Why not the bootstrap: FID and KID read the repeated images of a resample as a narrower distribution; of 60 images the
mean of such FIDs lay 1 to 7 standard deviations above the FID itself. And percentiles of a rare class's IoU told two
equal models apart in up to 25% of trials. `docs/statistics.md` has the rates of these intervals.

The interval is for the score at this N: FID falls with N, and no resampling gives its value at another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import stdtrit

from dpgan.errors import UserError

LEVEL = 0.95  # of a score's interval
# Of the interval of a difference, on which verdicts depend. More than 0.95, so that errors of the approximation do not
# carry the share of equal models that are called better or worse above 5%.
CERTAIN = 0.97
LOWER_IS_BETTER = ("fid", "kid")  # beginnings of scores' names; of all others higher is better
_FEWEST = 0.5  # degrees of freedom: where one label map carries all, the interval is as good as infinite


@dataclass(frozen=True)
class Estimate:
    """A score, and what each label map adds to its error."""

    value: float  # the mean over the noise seeds
    parts: np.ndarray  # float64 [label maps]: the root of the sum of squares is the standard error; NaN: not known
    n: int  # images per seed
    seeds: int = 1
    deviation: float | None = None  # standard deviation over the seeds, if there are several
    percent: bool = False  # a share, between 0 and 100

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the value at `LEVEL`."""
        low, high = _interval(self.value, self.parts, LEVEL)
        return (max(low, 0.0), min(high, 100.0)) if self.percent else (low, high)

    def record(self) -> dict[str, Any]:
        """For JSON: value, low, high, n (images per seed), seeds (how many), and deviation if there are several."""
        low, high = self.interval
        facts = {"value": self.value, "low": low, "high": high, "n": self.n, "seeds": self.seeds}
        return facts if self.deviation is None else {**facts, "deviation": self.deviation}


def _interval(value: float, parts: np.ndarray, level: float) -> tuple[float, float]:
    """Of Student's t; infinite if one of the parts is not known, a point if all are 0."""
    error = float(np.sqrt((parts**2).sum()))
    if not error:
        return value, value
    if not np.isfinite(error):
        return -np.inf, np.inf
    carrying = (float(np.abs(parts).sum()) / error) ** 2
    half = error * float(stdtrit(max(carrying - 1, _FEWEST), (1 + level) / 2))
    return value - half, value + half


def _over_seeds(values: Sequence[float], parts: np.ndarray, n: int, percent: bool = False) -> Estimate:
    """values: by seed [S]; parts: [S, label maps]."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), parts.mean(axis=0), n, len(values), deviation, percent)


def of_sums(by_seed: Sequence[tuple[float, tuple[np.ndarray, ...]]], n: int) -> Estimate:
    """The estimate of a score that is, to first order, its value and the mean of contributions by image.

    by_seed: the score, and an array [N] of contributions of mean 0 for every set of images that it depends on. Sets of
    one size are lists over the same label maps, others are independent.
    """
    parts = []
    for _, sets in by_seed:
        scaled = [part / np.sqrt(len(part) * (len(part) - 1)) for part in sets]
        same = len({len(part) for part in sets}) == 1
        parts.append(np.sum(scaled, axis=0) if same else np.concatenate(scaled))
    return _over_seeds([value for value, _ in by_seed], np.stack(parts), n)


def of_tables(tables: np.ndarray, scores: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> dict[str, Estimate]:
    """The estimates of scores, in percent, of what a judge read, each computed again without each label map.

    tables: int64 [S, N, K, 3] (`readings.tables`). scores: by name, of tables summed over images, [..., K, 3] -> [...].
    """
    n = tables.shape[1]
    total = tables.sum(axis=1)
    without = total[:, None] - tables
    found = {}
    for name, score in scores.items():
        values = score(total)
        # NaN where the score rests on that label map alone: nothing says how far it would move.
        parts = np.sqrt((n - 1) / n) * (values[:, None] - score(without))
        found[name] = _over_seeds(values.tolist(), parts, n, percent=True)
    return found


@dataclass(frozen=True)
class Comparison:
    """Ours less theirs, with its interval at `CERTAIN`, and what that says of ours."""

    difference: float
    low: float
    high: float
    verdict: Literal["better", "worse", "cannot tell"]


def compare(ours: Estimate, theirs: Estimate, lower_is_better: bool) -> Comparison:
    """Two models on the same label maps and noise seeds: PAIRED, so what the label maps do to both cancels.

    The verdict is `better` or `worse` if the interval of the difference leaves out 0: two equal models are called so in
    about 1 - CERTAIN of the cases. Raises ValueError if they were not scored on as many label maps; that it was the
    same ones, under the same noise seeds, is for the caller to ensure (`evaluate.protocol`).
    """
    if ours.n != theirs.n or ours.parts.shape != theirs.parts.shape:
        raise ValueError(f"a paired comparison needs the same label maps, not {ours.n} and {theirs.n}")
    difference = ours.value - theirs.value
    low, high = _interval(difference, ours.parts - theirs.parts, CERTAIN)
    if ours.percent:
        low, high = max(low, -100.0), min(high, 100.0)
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    if low > 0 or high < 0:
        verdict = "better" if (high < 0) == lower_is_better else "worse"
    return Comparison(difference, low, high, verdict)


def compare_scores(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> dict[str, Comparison]:
    """`compare`, every score that both have, by name."""
    common = [name for name in ours if name in theirs]
    return {name: compare(ours[name], theirs[name], name.startswith(LOWER_IS_BETTER)) for name in common}


def save_estimates(scores: Mapping[str, Estimate], path: Path) -> None:
    """All of them as one safetensors file: what a later paired comparison needs of a model."""
    facts = {k: {**asdict(score), "parts": None} for k, score in scores.items()}
    save_file({k: score.parts for k, score in scores.items()}, path, {"estimates": json.dumps(facts)})


def load_estimates(path: Path) -> dict[str, Estimate]:
    """What `save_estimates` wrote. UserError if an earlier version of dpgan did, or if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["estimates"])
            return {k: Estimate(**{**fields, "parts": file.get_tensor(k)}) for k, fields in facts.items()}
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: holds no scores that this version of dpgan reads (an earlier one wrote it, or it is damaged); "
            "evaluate again: `dvc repro evaluate`"
        ) from None

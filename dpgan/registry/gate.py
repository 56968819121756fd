"""Who becomes champion: a pure function of evaluations.

What the gate weighs are PAIRED differences on the same label maps, with 97% intervals (`evaluation.intervals.compare`).
A candidate takes the champion's place where

- nothing is worse: FID, KID and mIoU are each better, or cannot be told apart;
- something is better: FID (how the pictures look) or mIoU (whether they show what the map says), beyond doubt;
- no class is given up for it: no class's IoU lies below the champion's by more than a tolerance, beyond doubt.

Why not "better in both": of two good trainings one seldom wins both beyond doubt, and a champion that nothing can
replace is of no use. Why not "a lower number": of two trainings that cannot be told apart every second one would take
the other's place, and whoever uses the champion would get another model for no gain. KID counts only against a
candidate: it sees what FID sees, so a better KID is no second reason.

Against the floor (class colours) there is less to ask: FID and mIoU must be better and KID not worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dpgan.evaluation.intervals import CERTAIN, Comparison, Estimate, compare
from dpgan.identities import protocol_key

_NAMED = 3  # classes that a reason names


@dataclass(frozen=True)
class Evaluation:
    """What a generator scored. Two evaluations compare only under the same `protocol`."""

    scores: Mapping[str, Estimate]  # by full name
    finite: bool  # every weight is finite
    protocol: Mapping[str, Any]  # metrics, judge, dataset version: `evaluation.evaluate.protocol`

    @property
    def key(self) -> str:
        """A short hash of the protocol."""
        return protocol_key(self.protocol)

    @property
    def main(self) -> tuple[str, str, str]:
        """Names of FID, KID and mIoU under the protocol."""
        features, judge = self.protocol["features"], self.protocol["judge"]
        return f"fid_{features}", f"kid_{features}", f"miou_{judge}"

    @property
    def classes(self) -> dict[str, Estimate]:
        """IoU by class, in percent."""
        prefix = f"iou_{self.protocol['judge']}/"
        return {name.removeprefix(prefix): score for name, score in self.scores.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Verdict:
    """`reasons`: a sentence per comparison; of a refusal only those that failed."""

    passed: bool
    reasons: tuple[str, ...]


def decide(candidate: Evaluation, floor: Evaluation, champion: Evaluation | None, class_tolerance: float) -> Verdict:
    """Whether a candidate with finite weights and a complete evaluation beats the floor, and the champion if any.

    class_tolerance: points of IoU (percent) by which a class may fall behind the champion's.
    Raises ValueError where a rival was scored under another protocol than the candidate.
    """
    rivals = {"floor": floor} if champion is None else {"floor": floor, "champion": champion}
    for name, rival in rivals.items():
        if rival.protocol != candidate.protocol:
            raise ValueError(f"the {name} was scored under another protocol than the candidate: score it again first")
    missing = _missing(candidate, rivals)
    checks = [
        (candidate.finite, f"the weights are {'all' if candidate.finite else 'not all'} finite"),
        (not missing, f"scores are missing or not finite: {', '.join(missing)}" if missing else "every score is there"),
    ]
    if all(passed for passed, _ in checks):
        for name, rival in rivals.items():
            checks += _duel(candidate, rival, name)
        if champion is not None:
            checks.append(_classes_hold(candidate, champion, class_tolerance))
    passed = all(passed for passed, _ in checks)
    return Verdict(passed, tuple(sentence for good, sentence in checks if passed or not good))


def _missing(candidate: Evaluation, rivals: Mapping[str, Evaluation]) -> list[str]:
    """Scores of the protocol that the candidate lacks; a class that no judge has read anywhere has none to lack."""
    judge = candidate.protocol["judge"]
    needed = {*candidate.main, f"accuracy_{judge}"}
    for rival in rivals.values():
        needed |= {name for name, s in rival.scores.items() if name.startswith(f"iou_{judge}/") and s.value > 0}
    return sorted(n for n in needed | candidate.scores.keys() if not _is_finite(candidate.scores.get(n)))


def _is_finite(score: Estimate | None) -> bool:
    return score is not None and math.isfinite(score.value)


def _duel(candidate: Evaluation, rival: Evaluation, name: str) -> Iterator[tuple[bool, str]]:
    """FID, KID and mIoU against a rival: a check and its sentence each, and one for all."""
    fid, kid, miou = candidate.main
    compared = {n: compare(candidate.scores[n], rival.scores[n], n != miou) for n in (fid, kid, miou)}
    better = {n for n, c in compared.items() if c.verdict == "better"}
    enough = {fid, miou} <= better if name == "floor" else bool({fid, miou} & better)
    words = {"better": "is better than", "worse": "is worse than", "cannot tell": "cannot be told from"}
    for n, c in compared.items():
        decisive = n != kid and not enough and n not in better
        ours, theirs = f"{candidate.scores[n].value:.4g}", f"{rival.scores[n].value:.4g}"
        sentence = f"{n} {ours} {words[c.verdict]} the {name}'s {theirs} ({_difference(c)})"
        yield c.verdict != "worse" and not decisive, sentence
    if not enough:
        asked = f"both {fid} and {miou}" if name == "floor" else f"{fid} or {miou}"
        yield False, f"not enough for the {name}'s place: {asked} must be better"


def _classes_hold(candidate: Evaluation, champion: Evaluation, tolerance: float) -> tuple[bool, str]:
    theirs = champion.classes
    found = {n: compare(s, theirs[n], False) for n, s in candidate.classes.items() if n in theirs}
    worst = sorted((n for n, c in found.items() if c.high < -tolerance), key=lambda n: found[n].high)
    if not worst:
        return True, f"no class's IoU is below the champion's by more than {tolerance:g}"
    named = ", ".join(f"{n} ({_difference(found[n])})" for n in worst[:_NAMED])
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    return False, f"the IoU of classes is below the champion's by more than {tolerance:g}: {named}{more}"


def _difference(c: Comparison) -> str:
    return f"{c.difference:+.3g}, {CERTAIN:.0%} interval {c.low:+.3g} to {c.high:+.3g}"

"""Who becomes champion: a pure function of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """What a generator scored. Two evaluations compare only under the same `protocol`."""

    fid: float
    miou: float
    scores: Mapping[str, float]  # every score by its full name; the gate reads only the two above
    finite: bool  # every weight is finite
    protocol: str  # identity of the metrics, the judge and the dataset version


@dataclass(frozen=True)
class Verdict:
    """`reasons`: a sentence per comparison; of a refusal only those that failed."""

    promoted: bool
    reasons: tuple[str, ...]


def decide(candidate: Evaluation, floor: Evaluation, champion: Evaluation | None) -> Verdict:
    """Promotes a candidate with finite weights that beats the floor and the champion, if there is one.

    Beating means a lower FID and a higher mIoU, both strictly; NaN and infinity never do.
    Raises ValueError where the rivals were scored under another protocol than the candidate.
    """
    rivals = {"floor": floor} if champion is None else {"floor": floor, "champion": champion}
    checks = [(candidate.finite, f"the weights are {'all' if candidate.finite else 'not all'} finite")]
    for name, rival in rivals.items():
        if rival.protocol != candidate.protocol:
            raise ValueError(
                f"the {name} was scored under protocol {rival.protocol!r} and the candidate under "
                f"{candidate.protocol!r}: score the {name} again first"
            )
        for metric, value, other, word, better in (
            ("FID", candidate.fid, rival.fid, "below", candidate.fid < rival.fid),
            ("mIoU", candidate.miou, rival.miou, "above", candidate.miou > rival.miou),
        ):
            passed = better and math.isfinite(value)
            relation = word if passed else f"not {word}"
            checks.append((passed, f"{metric} {value:.5g} is {relation} the {name}'s {other:.5g}"))
    promoted = all(passed for passed, _ in checks)
    return Verdict(promoted, tuple(sentence for passed, sentence in checks if promoted or not passed))

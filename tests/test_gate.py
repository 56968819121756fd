"""The gate: who may become champion."""

import math
from dataclasses import replace

import pytest

from dpgan.registry.gate import Evaluation, decide

FLOOR = Evaluation(fid=208.8, miou=12.0, scores={}, finite=True, protocol="p")
CHAMPION = replace(FLOOR, fid=100.0, miou=30.0)


def test_the_first_champion_must_beat_only_the_floor() -> None:
    verdict = decide(replace(FLOOR, fid=123.4, miou=20.0), FLOOR, None)
    assert verdict.promoted
    assert "FID 123.4 is below the floor's 208.8" in verdict.reasons
    assert "mIoU 20 is above the floor's 12" in verdict.reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fid": 100.0}, "FID 100 is not below the champion's 100"),
        ({"miou": 30.0}, "mIoU 30 is not above the champion's 30"),
        ({"fid": math.nan}, "FID nan is not below the floor's 208.8"),
        ({"fid": -math.inf}, "FID -inf is not below the floor's 208.8"),
        ({"miou": math.nan}, "mIoU nan is not above the champion's 30"),
        ({"miou": math.inf}, "mIoU inf is not above the champion's 30"),
        ({"finite": False}, "the weights are not all finite"),
    ],
)
def test_a_refusal_names_what_failed(change: dict[str, float], reason: str) -> None:
    better = replace(CHAMPION, fid=90.0, miou=31.0)
    assert decide(better, FLOOR, CHAMPION).promoted
    verdict = decide(replace(better, **change), FLOOR, CHAMPION)
    assert not verdict.promoted
    assert reason in verdict.reasons
    assert all("not" in sentence for sentence in verdict.reasons)


def test_beating_the_champion_alone_is_not_enough() -> None:
    weak = replace(FLOOR, fid=300.0, miou=1.0)
    assert not decide(replace(FLOOR, fid=250.0, miou=5.0), FLOOR, weak).promoted


@pytest.mark.parametrize("rival", ["floor", "champion"])
def test_scores_of_another_protocol_are_not_compared(rival: str) -> None:
    rivals = {"floor": FLOOR, "champion": CHAMPION}
    rivals[rival] = replace(rivals[rival], protocol="q")
    with pytest.raises(ValueError, match=f"score the {rival} again"):
        decide(replace(CHAMPION, fid=90.0, miou=31.0), **rivals)

"""The gate: who may become champion."""

import math
from dataclasses import replace

import pytest
from registry_project import FLOOR, OTHER, evaluation

from dpgan.evaluation.intervals import compare_scores
from dpgan.registry.gate import Evaluation, Verdict, decide

CHAMPION = evaluation(fid=100, miou=30, kid=150)


def ask(candidate: Evaluation, champion: Evaluation | None = CHAMPION, tolerance: float = 10) -> Verdict:
    return decide(candidate, FLOOR, champion, tolerance)


def test_the_first_champion_must_beat_the_floor_beyond_doubt() -> None:
    verdict = ask(CHAMPION, None)
    assert verdict.passed
    assert verdict.reasons[:2] == ("the weights are all finite", "every score is there")
    assert verdict.reasons[2].startswith("fid_lite0 100 is better than the floor's 200 (-100, 97% interval -10")
    assert verdict.reasons[4].startswith("miou_trained 30 is better than the floor's 10 (+20, 97% interval +1")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"fid": 199}, "fid_lite0 199 cannot be told from the floor's 200 (-1, 97% interval -4"),
        ({"fid": 210}, "fid_lite0 210 is worse than the floor's 200"),
        ({"miou": 11}, "miou_trained 11 cannot be told from the floor's 10 (+1, 97% interval -2"),
        ({"kid": 450}, "kid_lite0 450 is worse than the floor's 400"),
    ],
)
def test_what_is_not_above_the_floor_is_refused(scores: dict[str, float], reason: str) -> None:
    verdict = ask(evaluation(**scores), None)
    assert not verdict.passed
    assert verdict.reasons[0].startswith(reason)
    assert all("is better than" not in sentence for sentence in verdict.reasons), "only what failed is said"


@pytest.mark.parametrize("scores", [{"fid": 90}, {"miou": 35}, {"fid": 90, "miou": 29}, {"fid": 90, "kid": 151}])
def test_one_clear_gain_and_no_loss_is_enough(scores: dict[str, float]) -> None:
    assert ask(evaluation(**scores)).passed


@pytest.mark.parametrize(
    ("scores", "reasons"),
    [
        ({"fid": 90, "miou": 25}, ["miou_trained 25 is worse than the champion's 30"]),
        ({"fid": 110, "miou": 35}, ["fid_lite0 110 is worse than the champion's 100"]),
        ({"fid": 90, "kid": 170}, ["kid_lite0 170 is worse than the champion's 150"]),
        ({"kid": 100}, ["fid_lite0 100 cannot be told from the champion's 100", "miou_trained 30 cannot be told",
                        "not enough for the champion's place: fid_lite0 or miou_trained must be better"]),
    ],
)  # fmt: skip
def test_a_loss_or_no_clear_gain_is_refused(scores: dict[str, float], reasons: list[str]) -> None:
    verdict = ask(evaluation(**scores))
    assert not verdict.passed
    assert len(verdict.reasons) == len(reasons)
    for said, expected in zip(verdict.reasons, reasons, strict=True):
        assert said.startswith(expected)


def test_two_that_cannot_be_told_apart_do_not_take_each_others_place() -> None:
    one, other = evaluation(fid=100.4, miou=30.5, kid=149), evaluation(fid=99.8, miou=29.8, kid=151)
    for ours, theirs in ((one, other), (other, one)):
        verdict = ask(ours, theirs)
        assert not verdict.passed
        assert "cannot be told from" in verdict.reasons[0]
        assert "97% interval" in verdict.reasons[0]


def test_no_class_is_given_up_for_a_better_fid() -> None:
    champion = evaluation(classes={"road": 90.0, "bus": 40.0, "car": 50.0})
    lost = evaluation(fid=80, classes={"road": 91.0, "bus": 25.0, "car": 45.0})
    verdict = ask(lost, champion, tolerance=10)
    assert not verdict.passed
    (reason,) = verdict.reasons
    assert reason.startswith("the IoU of classes is below the champion's by more than 10: bus (-15, 97% interval -1")
    assert "car" not in reason
    assert ask(lost, champion, tolerance=15).passed, "15 is not exceeded beyond doubt"
    assert not ask(lost, champion, tolerance=0).passed


def test_the_worst_of_many_lost_classes_are_named() -> None:
    names = ["road", "bus", *(f"class {i}" for i in range(2, 6))]
    champion = evaluation(classes=dict.fromkeys(names, 90.0))
    lost = evaluation(fid=80, classes={name: 60.0 - 8 * i for i, name in enumerate(names)})
    (reason,) = ask(lost, champion).reasons
    assert reason.index("class 5") < reason.index("class 4") < reason.index("class 3")
    assert reason.endswith("and 3 more")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    for name in ("fid", "miou", "kid"):
        verdict = ask(evaluation(**{"fid": 80, name: value}))
        assert not verdict.passed
        assert verdict.reasons[0].startswith(f"scores are missing or not finite: {name}_")


def test_an_evaluation_that_lacks_a_score_is_refused() -> None:
    whole = evaluation(fid=80)
    assert ask(whole).passed
    for name in whole.scores:
        part = replace(whole, scores={key: score for key, score in whole.scores.items() if key != name})
        assert ask(part).reasons == (f"scores are missing or not finite: {name}",)


def test_a_class_that_the_champion_alone_saw_where_there_is_none_is_not_missing() -> None:
    """The judge read it in the champion's pictures, and no label map has it: its IoU is 0."""
    assert ask(evaluation(fid=80), evaluation(classes={"road": 90.0, "bus": 20.0, "train": 0.0})).passed


def test_weights_that_are_not_finite_are_refused() -> None:
    assert ask(evaluation(fid=80, finite=False)).reasons == ("the weights are not all finite",)


def test_beating_the_champion_alone_is_not_enough() -> None:
    weak = evaluation(fid=300, miou=1, kid=600, classes={})
    verdict = ask(evaluation(fid=250, miou=5, kid=500), weak)
    assert not verdict.passed
    assert all("the floor's" in sentence for sentence in verdict.reasons)


@pytest.mark.parametrize("rival", ["floor", "champion"])
def test_scores_of_another_protocol_are_not_compared(rival: str) -> None:
    rivals = {"floor": FLOOR, "champion": CHAMPION}
    rivals[rival] = replace(rivals[rival], protocol=OTHER)
    with pytest.raises(ValueError, match=f"the {rival} was scored under another protocol"):
        decide(evaluation(fid=80), **rivals, class_tolerance=10)


def test_every_common_score_is_compared_in_its_own_direction() -> None:
    found = compare_scores(evaluation(fid=80, miou=40, classes={"road": 90.0, "sky": 1.0}).scores, CHAMPION.scores)
    said = {name: c.verdict for name, c in found.items()}
    assert said == {"fid_lite0": "better", "kid_lite0": "cannot tell", "miou_trained": "better",
                    "accuracy_trained": "cannot tell", "iou_trained/road": "cannot tell"}  # fmt: skip

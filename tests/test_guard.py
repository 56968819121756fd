"""The decision about steps whose gradients are not finite."""

from __future__ import annotations

from dpgan.training.guard import Action, Guard


def decisions(steps: str, patience: int = 2) -> str:
    """`steps`: a letter each, `.` finite and `x` not -> what is done, `.` go on, `b` roll back, `!` give up."""
    guard = Guard(patience)
    letters = {Action.GO_ON: ".", Action.ROLL_BACK: "b", Action.GIVE_UP: "!"}
    return "".join(letters[guard.judge(step == ".")] for step in steps)


def test_a_few_are_skipped() -> None:
    assert decisions(".xx.xx.x.") == "........."


def test_more_in_a_row_go_back_once_then_give_up() -> None:
    assert decisions(".xxx..xxx") == "...b....!"


def test_the_count_starts_anew_after_going_back() -> None:
    assert decisions("xxxxxx") == "..b..!"


def test_what_was_skipped_is_counted() -> None:
    guard = Guard(patience=3)
    for finite in (True, False, True, False):
        guard.judge(finite)
    assert guard.total == 2

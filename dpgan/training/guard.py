"""What to do when the gradients of an update are not finite numbers: a decision, the same on every worker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dpgan.training.strategy import AgreedError


class Action(Enum):
    """What the loop does after a step."""

    GO_ON = "go on"
    ROLL_BACK = "roll back"
    GIVE_UP = "give up"


class NonFiniteError(AgreedError):
    """Training came to NaN or infinity again after it had gone back to a checkpoint."""


@dataclass
class Guard:
    """Steps whose gradients are not finite train nothing. After more than `patience` of them in a row training goes
    back to its newest checkpoint, once: that mends a passing fault of the machine. The next time it gives up.
    """

    patience: int
    skipped: int = 0  # in a row
    total: int = 0
    rolled_back: bool = False

    def judge(self, finite: bool) -> Action:
        """`finite`: whether all updates of the step were made, agreed upon by the workers."""
        if finite:
            self.skipped = 0
            return Action.GO_ON
        self.skipped += 1
        self.total += 1
        if self.skipped <= self.patience:
            return Action.GO_ON
        if self.rolled_back:
            return Action.GIVE_UP
        self.rolled_back, self.skipped = True, 0
        return Action.ROLL_BACK

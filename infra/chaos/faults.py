"""What a fault is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.lab import Lab


@dataclass(frozen=True)
class Outcome:
    """What happened, in a sentence, and how many images the training had to see again (None: not a question here)."""

    happened: str
    lost: int | None = None


class PromiseError(Exception):
    """A promise that does not hold."""


class NotHereError(Exception):
    """Why a fault cannot be injected on this machine."""


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    number: int
    name: str
    promise: str
    inject: Callable[[Lab], Outcome]


FAULTS: dict[int, Fault] = {}


def fault(number: int, name: str, promise: str) -> Callable[[Callable[[Lab], Outcome]], Callable[[Lab], Outcome]]:
    """Registers a function as the fault with this number."""

    def register(inject: Callable[[Lab], Outcome]) -> Callable[[Lab], Outcome]:
        if number in FAULTS:
            raise ValueError(f"two faults have the number {number}")
        FAULTS[number] = Fault(number, name, promise, inject)
        return inject

    return register


def expect(holds: object, otherwise: str) -> None:
    """Raises `PromiseError` with `otherwise` unless `holds`."""
    if not holds:
        raise PromiseError(otherwise)

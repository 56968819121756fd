"""The generators, by name. This package imports torch and `layers` only: it is shipped with a registered model."""

from __future__ import annotations

from typing import Any

from .baselines import OasisGenerator, SpadeGenerator
from .blocks import Generator
from .dp import DPGenerator

GENERATORS: dict[str, type[Generator]] = {"dp": DPGenerator, "oasis": OasisGenerator, "spade": SpadeGenerator}


def build_generator(kind: str = "dp", **arguments: Any) -> Generator:
    """The generator of a name, with its own arguments; it remembers both."""
    generator = GENERATORS[kind](**arguments)
    generator.arguments = {"kind": kind, **arguments}
    return generator

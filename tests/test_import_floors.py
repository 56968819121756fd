"""Imports only go down the floors, and each heavy dependency has one package that imports it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lowest first; modules of one floor may import each other.
FLOORS = [
    {"environment", "errors", "settings", "files", "identities", "progress", "hardware", "cluster", "page"},
    {"checks", "config", "presets", "labels"},
    {"models", "losses", "data"},
    {"evaluation"},
    {"training"},
    {"registry"},
    {"stages", "imports", "champions", "datasets", "experiments", "scoring", "cli"},
    {"flows"},
]
OWNERS = {
    "ray": ("dpgan.cluster", "dpgan.training.launch"),  # its core; Ray Train
    "deepspeed": "dpgan.training.deepspeed_engine",
    "mlflow": "dpgan.registry",
    "prefect": "flows",
    "nvidia": "dpgan.data.loader",
    "transformers": "dpgan.evaluation.judges.transformers",
    "great_expectations": ("dpgan.data.contract", "dpgan.data.validation"),  # the suite; running it
}
MODULES = sorted([*ROOT.glob("dpgan/**/*.py"), *ROOT.glob("flows/**/*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def floor(name: str) -> int | None:
    """The floor of a module of ours; None for others, and for the bare package."""
    parts = name.split(".")
    part = parts[0] if parts[0] == "flows" else (parts[1] if parts[0] == "dpgan" and len(parts) > 1 else None)
    return next((i for i, members in enumerate(FLOORS) if part in members), None)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_go_down(path: Path) -> None:
    name = module_name(path)
    if name in ("dpgan", "dpgan.__init__"):
        return
    own = floor(name)
    assert own is not None, f"{name} stands on no floor: add it to FLOORS"
    above = {other for other in imports(path) if (floor(other) or 0) > own}
    assert not above, f"{name} imports from above: {above}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_dependencies_have_one_owner(path: Path) -> None:
    name = module_name(path)
    for dependency, owner in OWNERS.items():
        users = {other for other in imports(path) if other.split(".")[0] == dependency}
        assert not users or name.startswith(owner), f"{name} imports {users}; only {owner} may"

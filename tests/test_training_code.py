"""Which source a run's code hash covers, and what changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from test_import_floors import imports

from dpgan.identities import TRAINING_CODE, training_code

PACKAGE = ROOT / "dpgan"
# What those modules import besides: settings, errors and files change no number of a training that they let pass.
# models/generators/export.py and the judges' layers are for serving.
BESIDES = {"config", "errors", "files", "hardware", "settings", "labels", "training/checkpoint"}


def module_file(name: str) -> str | None:
    """`dpgan.models.ema` -> `models/ema.py`; None for what is no module of ours."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if name.startswith("dpgan.") and file.is_file():
            return str(file.relative_to(PACKAGE))
    return None


@pytest.mark.parametrize("name", TRAINING_CODE)
def test_what_it_imports_is_covered_too(name: str) -> None:
    found = {module_file(module) for module in imports(PACKAGE / name)} - {None}
    besides = {f"{other}.py" for other in BESIDES} | {"models/__init__.py", "data/__init__.py"}
    assert found <= set(TRAINING_CODE) | besides


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in TRAINING_CODE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", TRAINING_CODE)
def test_a_changed_line_changes_it(copy: Path, name: str) -> None:
    before = training_code(copy)
    assert before == training_code()
    with (copy / name).open("a") as file:
        file.write("\nCHANGED = 1\n")
    assert training_code(copy) != before


def test_comments_and_docstrings_change_nothing(copy: Path) -> None:
    before, path = training_code(copy), copy / "losses.py"
    text = path.read_text()
    path.write_text("# a comment\n" + text.replace('"""', '"""Changed. ', 1))
    assert path.read_text() != text
    assert training_code(copy) == before

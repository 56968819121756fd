"""A registry that was copied or moved with its project, and stores that cannot be used."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow.tracking._tracking_service import utils
from mlflow_server import hanging_server
from registry_project import BETTER, GOOD, MODEL, Project, content, evaluation

from dpgan.cli import main
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.registry import store
from dpgan.registry.packaging import load_files
from dpgan.registry.promote import champion_version
from dpgan.registry.store import adopt
from dpgan.registry.versions import Versions


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a champion."""
    root = tmp_path_factory.mktemp("template")
    (root / "data/toyscapes").mkdir(parents=True)
    shutil.copy(ROOT / "data/toyscapes/dataset.yaml", root / "data/toyscapes")
    (root / "params.yaml").write_text("dataset: toyscapes\nraw: raw\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        project = Project(root)
        project.promote(1, GOOD)
    return project


@pytest.fixture
def project(template: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it, in a folder whose name is quoted in a URI; the current folder."""
    root = tmp_path / "my project ü"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(template.root, root)
    monkeypatch.chdir(root)
    return reopened(template, root)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def reopened(project: Project, root: Path) -> Project:
    """The same run, seen from another folder."""
    utils._artifact_repos_cache.clear()  # another project is another process
    other = Project.__new__(Project)
    other.root, other.run = root, project.run
    other.versions = Versions.of(root, "toyscapes")
    other.client = other.versions.client
    return other


def paths(root: Path) -> set[str]:
    """The folders above `artifacts` that the database names."""
    with sqlite3.connect(root / "mlruns/mlflow.db") as db:
        rows = db.execute(
            "SELECT artifact_location FROM experiments WHERE name LIKE 'dpgan-%' UNION SELECT artifact_uri FROM runs "
            "UNION SELECT artifact_location FROM logged_models UNION SELECT storage_location FROM model_versions"
        )
        return {str(path).partition("/mlruns/")[0] for (path,) in rows}


def works(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Load, promote and compare in a project whose champion was version 1."""
    assert load_files(project.versions.uri, MODEL, 1).digest == content(1).digest
    assert project.promote(2, BETTER).champion == 2
    assert load_files(project.versions.uri, MODEL, 2).digest == content(2).digest
    assert main(["registry", "compare", "2", "1"]) == 0
    assert "better" in capsys.readouterr().out


def test_a_copy_works_on_its_own_registry(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = tmp_path / "copy"
    shutil.copytree(project.root, copy)
    before = hashes(project.root)
    monkeypatch.chdir(copy)
    mine = reopened(project, copy)
    assert f"{copy / 'mlruns'} was copied or moved from {project.root / 'mlruns'}" in caplog.text
    assert paths(copy) == {copy.as_uri()}
    works(mine, capsys)
    assert hashes(project.root) == before
    caplog.clear()
    Versions.of(copy, "toyscapes")
    assert caplog.text == ""
    monkeypatch.chdir(project.root)
    assert champion_version(project.root, "toyscapes") == 1


def test_a_project_that_was_moved_works(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    project.root.rename(moved)
    monkeypatch.chdir(moved)
    works(reopened(project, moved), capsys)
    assert paths(moved) == {moved.as_uri()}
    assert not project.root.exists()


def test_another_name_of_the_same_folder_changes_nothing(project: Project, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(project.root)
    linked = tmp_path / "mounted" / "mlruns"  # as a second mount: another path, the same inode
    linked.mkdir(parents=True)
    os.link(project.root / "mlruns/mlflow.db", linked / "mlflow.db")
    before = hashes(project.root)
    for root in (link, linked.parent, project.root):
        adopt(root / "mlruns/mlflow.db")
    assert hashes(project.root) == before
    assert paths(project.root) == {project.root.as_uri()}


def test_a_copy_without_artifacts_is_refused(project: Project, tmp_path: Path) -> None:
    before = hashes(project.root)
    for name in ("copy", "backup"):
        folder = tmp_path / name / ("mlruns" if name == "copy" else "of today")
        folder.mkdir(parents=True)
        shutil.copy(project.root / "mlruns/mlflow.db", folder)
        with pytest.raises(UserError, match=r"is a copy of .*mlruns, without its artifacts: copy"):
            adopt(folder / "mlflow.db")
        (folder / "artifacts").symlink_to(project.root / "mlruns/artifacts")
        with pytest.raises(UserError, match=r"without its artifacts"):
            adopt(folder / "mlflow.db")
    assert hashes(project.root) == before


def test_an_experiment_on_another_disk_stays_there(project: Project, tmp_path: Path) -> None:
    disk = tmp_path / "disk" / "artifacts" / "large"
    project.client.create_experiment("large", artifact_location=disk.as_uri())
    moved = tmp_path / "elsewhere"
    project.root.rename(moved)
    adopt(moved / "mlruns/mlflow.db")
    found = reopened(project, moved).client.get_experiment_by_name("large")
    assert found is not None
    assert found.artifact_location == disk.as_uri()


COMMANDS = {
    "list": ["registry", "list"],
    "promote": ["registry", "promote", "1", "--reason", "I say so"],
    "rollback": ["registry", "rollback"],
    "compare": ["registry", "compare", "1", "1"],
    "tables": ["tables"],
    "evaluate": ["evaluate", f"models:/{MODEL}@champion"],
    "ui": ["ui"],
}


def _replaced(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _other_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'abc'")


def _other_tables(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE songs (title)")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda file: _replaced(file, b"no database" * 1000), r"mlflow\.db is damaged.*file is not a database"),
    "cut off": (lambda file: _replaced(file, file.read_bytes()[:20_000]), r"mlflow\.db is damaged.*malformed"),
    "other tables": (_other_tables, r"mlflow\.db is damaged, or no MLflow database.*put a backup in its place"),
    "another MLflow": (
        _other_version,
        r"was made by another version of MLflow \(schema abc.*mlflow db upgrade sqlite:",
    ),
    "a folder": (_folder, r"mlflow\.db cannot be opened"),
}


def refused(command: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What a command says that must end with one sentence and this exit code."""
    capsys.readouterr()
    assert main(command) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("fault", BROKEN)
def test_a_database_that_cannot_be_used_is_named(
    project: Project, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """By every command, in one sentence, and it is not touched."""
    file = project.root / "mlruns/mlflow.db"
    spoil, message = BROKEN[fault]
    spoil(file)
    before = hashes(file.parent)
    for command in COMMANDS.values():
        assert re.search(message, refused(command, capsys)), command
    with pytest.raises(UserError, match=message):
        project.promote(2, BETTER)
    assert hashes(file.parent) == before


def test_a_locked_database_is_waited_for_and_named(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_S", 0.3)
    with closing(sqlite3.connect(project.root / "mlruns/mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for command in COMMANDS.values():
            begin = time.monotonic()
            said = refused(command, capsys, os.EX_TEMPFAIL)
            assert "mlflow.db has been locked by another process for 0.3 s; run this again" in said
            assert 0.3 <= time.monotonic() - begin < 3
    assert main(COMMANDS["list"]) == 0


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "no longer keeps runs in a plain folder; set it to a server"),
        ("file:///tmp/mlruns", "no longer keeps runs in a plain folder"),
        ("http://127.0.0.1:9", "the tracking server does not answer"),
    ],
)
def test_stores_that_cannot_be_are_refused(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in COMMANDS.values():
        said = refused(command, capsys, os.EX_TEMPFAIL if uri.startswith("http") else 2)
        assert f"MLFLOW_TRACKING_URI={uri}: " in said
        assert message in said


def test_a_server_that_hangs_is_named(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ANSWER_S", 0.3)
    with hanging_server("/health") as (uri, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for command in COMMANDS.values():
            assert "the tracking server does not answer" in refused(command, capsys, os.EX_TEMPFAIL)


def test_missing_artifacts_are_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(2, evaluation(fid=99.5))
    shutil.rmtree(project.root / "mlruns/artifacts")
    assert main(COMMANDS["list"]) == 0
    assert "its files are not in " in refused(COMMANDS["evaluate"], capsys)
    assert " is gone in file://" in refused(["registry", "compare", "1", "2"], capsys)


def test_the_ui_of_a_server_is_its_own(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_server("/") as (uri, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "is a server with a UI of its own" in refused(["ui"], capsys)


READ_ONLY = """
import sys
from dpgan.cli import main
sys.exit([main(["registry", "list"]), main(["registry", "promote", "1", "--reason", "x"])] != [0, 2])
"""


def test_a_read_only_registry_can_be_read(project: Project) -> None:
    for path in (project.root, *project.root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    powerless = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*powerless, sys.executable, "-c", READ_ONLY]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    for path in (project.root, *project.root.rglob("*")):
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "champion" in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert "dpgan-toyscapes.lock cannot be opened for writing (Permission denied): make it writable" in line
    assert "Traceback" not in done.stderr

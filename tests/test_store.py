"""A registry that was copied or moved with its project, and stores that cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow.tracking._tracking_service import utils
from registry_project import BETTER, GOOD, MODEL, Project, content

from dpgan.cli import main
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.registry.packaging import load_files
from dpgan.registry.promote import champion_version
from dpgan.registry.store import adopt
from dpgan.registry.versions import Versions


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a champion, in a folder whose name is quoted in a URI; the current folder."""
    root = tmp_path / "my project ü"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (root / "data/toyscapes").mkdir(parents=True)
    shutil.copy(ROOT / "data/toyscapes/dataset.yaml", root / "data/toyscapes")
    (root / "params.yaml").write_text("dataset: toyscapes\nraw: raw\n")
    monkeypatch.chdir(root)
    project = Project(root)
    project.promote(1, GOOD)
    return project


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

"""`dpgan registry`: what it prints, and what a user can do wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from registry_project import BETTER, GOOD, OTHER, Project, content, evaluation

from dpgan.cli import main
from dpgan.registry.packaging import register


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project on toyscapes with nothing in its registry; the current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/toyscapes").mkdir(parents=True)
    shutil.copy(ROOT / "data/toyscapes/dataset.yaml", tmp_path / "data/toyscapes")
    (tmp_path / "params.yaml").write_text("dataset: toyscapes\nraw: raw\n")
    return Project(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["registry", *arguments]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err if code else captured.out


def test_versions_are_listed_promoted_and_taken_back(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no version yet; `dvc repro` makes one" in said(capsys, "list")
    assert "no previous champion" in said(capsys, "rollback", code=2)
    project.promote(1, GOOD)
    project.promote(2, evaluation(fid=99.5))
    register(project.versions.uri, project.versions.model, project.run, content(3))  # as an import: never judged
    listed = said(capsys, "list")
    rows = {line.split()[0]: line for line in listed.splitlines() if line.strip()[:1] in ("1", "2", "3")}
    assert list(rows) == ["3", "2", "1"], "newest first"
    assert "fid_lite0" in listed
    for words in ("champion", " 100.0 ", " 150.0 ", " 30.0 ", GOOD.key[:8], "promoted"):
        assert words in rows["1"]
    for words in ("challenger", " 99.5 ", "refused"):
        assert words in rows["2"]
    assert "not judged" in rows["3"]

    assert "version 2 is champion" in said(capsys, "promote", "challenger", "--reason", "nicer skies")
    (row,) = (line for line in said(capsys, "list").splitlines() if line.split()[:1] == ["2"])
    assert "refused; promoted by " in row
    assert "nicer skies" in row
    assert "version 1 is champion again" in said(capsys, "rollback")
    assert "rolled back 20" in said(capsys, "list")


def test_two_versions_are_compared_score_by_score(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(1, GOOD)
    project.promote(2, evaluation(fid=80, miou=25))
    told = {line.split()[0]: line for line in said(capsys, "compare", "2", "champion").splitlines() if line.strip()}
    assert "version 2 less version 1, on the same 40 label maps" in told["dpgan-toyscapes:"]
    assert told["fid_lite0"].split()[1:4] == ["80.00", "100.00", "-20.00"]
    assert told["fid_lite0"].split()[-1] == "better"
    assert told["miou_trained"].split()[-1] == "worse"
    assert told["iou_trained/bus"].endswith("cannot tell") or "cannot tell" in told["iou_trained/bus"]


def test_a_comparison_needs_one_protocol(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.promote(1, GOOD)
    register(project.versions.uri, project.versions.model, project.run, content(2))
    error = said(capsys, "compare", "1", "2", code=2)
    assert "versions 1 and 2 have no scores under one protocol (version 1: lite0 and judge trained abababab on data " \
        "cdcdcdcd; version 2: none); --score scores them" in error  # fmt: skip
    asked = []

    def score(package: object, whose: str, stage: str) -> object:
        assert stage == "registry"
        asked.append(whose)
        return evaluation(fid={"version 1": 100, "version 2": 90}[whose], protocol=OTHER)

    monkeypatch.setattr("dpgan.champions.score", score)
    assert "better" in said(capsys, "compare", "2", "1", "--score")
    assert asked == ["version 2", "version 1"]
    assert "better" in said(capsys, "compare", "2", "1"), "what was scored is kept"
    assert len(asked) == 2


def test_scoring_names_what_it_lacks(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(1, GOOD)
    register(project.versions.uri, project.versions.model, project.run, content(2))
    assert "`dvc repro prepare` makes it" in said(capsys, "compare", "1", "2", "--score", code=2)


def test_errors_name_what_is_known(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(1, GOOD)
    project.promote(2, BETTER, approval=True)
    error = said(capsys, "promote", "5", "--reason", "x", code=2)
    assert "unknown version '5'; known: 2, 1, challenger, champion" in error
    assert "did you mean 'champion'?" in said(capsys, "compare", "champon", "2", code=2)
    assert "unknown command 'rolback'; did you mean 'rollback'?" in said(capsys, "rolback", code=2)
    assert "--reason" in said(capsys, "promote", "2", "--reason", "", code=2)
    assert project.versions.aliases() == {"champion": 1, "challenger": 2}

"""Records of scores as earlier versions of dpgan wrote them: scored again, or explained in one sentence."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from registry_project import BETTER, EARLIER, GOOD, Project, content
from safetensors.numpy import save_file

from dpgan.cli import main
from dpgan.errors import UserError
from dpgan.files import file_sha256, write_json
from dpgan.identities import protocol_key
from dpgan.labels import load_card
from dpgan.registry.gate import Evaluation
from dpgan.registry.packaging import Package
from dpgan.stages.evaluate import make_evaluator

stage = import_module("dpgan.stages.promote")  # `dpgan.stages` has a function of this name


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Version 1 is champion; its scores are as commit 1a278c2 wrote them. The current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/toyscapes").mkdir(parents=True)
    (tmp_path / "data/toyscapes/dataset.yaml").write_text((ROOT / "data/toyscapes/dataset.yaml").read_text())
    (tmp_path / "params.yaml").write_text("dataset: toyscapes\nraw: raw\n")
    made = Project(tmp_path)
    made.promote(1, GOOD)
    scores_of_before(made, 1)
    return made


def estimates_of_before(path: Path) -> None:
    """2000 replicates of every score."""
    facts = {name: {"value": s.value, "replicates": None, "n": 40, "seeds": 1, "deviation": None}
             for name, s in GOOD.scores.items()}  # fmt: skip
    save_file({name: np.full(2000, s.value) for name, s in GOOD.scores.items()}, path, {"estimates": json.dumps(facts)})


def scores_of_before(project: Project, number: int) -> None:
    """In the place of a version's present ones."""
    version, folder = project.versions.get(number), f"scores/version-{number}"
    for tag in [name for name in version.tags if name.startswith("scores.")]:
        project.client.delete_model_version_tag(version.name, str(number), tag)
    file = project.root / f"{protocol_key(EARLIER)}.safetensors"
    estimates_of_before(file)
    project.client.log_artifact(version.run_id, str(file), folder)
    main = {"fid_lite0": 100.0, "kid_lite0": 150.0, "miou_trained": 30.0}
    brief = {"protocol": EARLIER, "main": main, "finite": True, "artifact": f"{folder}/{file.name}",
             "sha256": file_sha256(file), "at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    project.versions.tag(number, {f"scores.{protocol_key(EARLIER)}": json.dumps(brief)})


def test_a_champion_of_before_is_scored_again(project: Project) -> None:
    asked = []

    def rescore(package: Package) -> Evaluation:
        asked.append(package.digest)
        return GOOD

    assert project.promote(2, BETTER, rescore).outcome == "promoted"
    assert asked == [content(1).digest]


def test_versions_of_before_are_listed_and_not_compared(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(2, GOOD, lambda _: GOOD)
    scores_of_before(project, 1)
    scores_of_before(project, 2)
    capsys.readouterr()
    assert main(["registry", "list"]) == 0
    assert " 150.0 " in capsys.readouterr().out
    assert main(["registry", "compare", "1", "2"]) == 2
    error = capsys.readouterr().err
    assert "have no scores under one protocol (version 1: lite0 and judge trained" in error
    assert "on data cdcdcdcd by another version of dpgan; version 2: " in error
    assert "Traceback" not in error


def test_an_evaluation_of_before_is_not_promoted(project: Project) -> None:
    write_json(Path("build/train/manifest.json"), {})
    write_json(Path("build/evaluation/scores.json"), {"protocol": EARLIER})
    write_json(Path("build/scores.json"), {})
    with pytest.raises(UserError, match=r"evaluation: scored by another version of dpgan; `dvc repro evaluate` scores"):
        stage.promote()


def test_data_of_an_edited_card_are_not_scored(project: Project) -> None:
    card = load_card("toyscapes")
    write_json(Path("build/prepared/meta.json"), {"card": card.model_copy(update={"size": (64, 64)}).digest})
    with pytest.raises(UserError, match=r"prepared: prepared with another version of data/toyscapes/dataset\.yaml"):
        make_evaluator()


def test_a_champion_of_other_classes_is_explained(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card has got a class since: the generator cannot read these label maps."""
    card = load_card("toyscapes")
    monkeypatch.setattr(stage, "make_evaluator", lambda *_, **__: (SimpleNamespace(card=card), {}))
    champion = content(1)
    champion.config["classes"] = [info.name for info in card.classes[:-1]]
    with pytest.raises(UserError, match=r"the champion paints other classes than data/toyscapes/dataset\.yaml has now"):
        stage.score(champion, "the champion", "promote")

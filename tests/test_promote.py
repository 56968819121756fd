"""Registering, refusing, promoting, rolling back; with a real registry."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from dpgan.environment import quiet_environment
from dpgan.errors import UserError
from dpgan.models.generators import DPGenerator
from dpgan.registry import promote as module
from dpgan.registry.gate import Evaluation
from dpgan.registry.packaging import Package
from dpgan.registry.promote import CHAMPION, PREVIOUS, Promotion, alias, champion_version, promote, rollback
from dpgan.registry.tracking import open_run, tracking_uri

MODEL = "dpgan-x"
FLOOR = Evaluation(fid=200.0, miou=10.0, scores={"kid_lite0": 5.0}, finite=True, protocol="p")
CEILING = replace(FLOOR, fid=0.0, miou=60.0)
GOOD, BETTER = replace(FLOOR, fid=100.0, miou=20.0), replace(FLOOR, fid=90.0, miou=21.0)


def content(seed: int) -> Package:
    torch.manual_seed(seed)
    generator = DPGenerator(num_classes=2, noise_channels=1, width=1)
    config = {"generator": {"num_classes": 2, "noise_channels": 1, "width": 1}, "dataset": "x", "size": [32, 32]}
    return Package(generator.state_dict(), {**config, "id_table": [0, 1] + [-1] * 254})


def never(package: Package) -> Evaluation:
    raise AssertionError("the champion was scored again though its scores are known")


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = open_run(root, "x", "run", {}, {})
        self.client = MlflowClient(tracking_uri(root))

    def promote(self, seed: int, candidate: Evaluation, rescore: Callable[[Package], Evaluation] = never) -> Promotion:
        floor = replace(FLOOR, protocol=candidate.protocol)
        return promote(self.root, "x", self.run, content(seed), candidate, floor, CEILING, rescore)

    def aliases(self) -> tuple[int | None, int | None]:
        return alias(self.client, MODEL, CHAMPION), alias(self.client, MODEL, PREVIOUS)

    def versions(self) -> int:
        return len(self.client.search_model_versions(f"name = '{MODEL}'"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    quiet_environment()
    return Project(tmp_path)


def test_promoted_refused_promoted_and_rolled_back(project: Project) -> None:
    first = project.promote(1, GOOD)
    assert (first.version, first.champion, first.verdict.promoted, first.standing) == (1, 1, True, False)
    assert project.aliases() == (1, None)

    again = project.promote(1, GOOD)
    assert (again.version, again.champion, again.standing) == (1, 1, True)
    assert again.verdict == first.verdict
    assert project.versions() == 1

    refused = project.promote(2, replace(GOOD, fid=95.0))  # a better FID alone is not enough
    assert (refused.version, refused.champion, refused.verdict.promoted) == (2, 1, False)
    recorded = project.client.get_model_version(MODEL, "2")
    assert recorded.tags["verdict"] == "refused"
    assert json.loads(recorded.tags["reasons"]) == ["mIoU 20 is not above the champion's 20"]
    assert "| floor (class colours) | 200 | 10 |" in recorded.description
    assert "| ceiling (real photos) | 0 | 60 |" in recorded.description
    assert project.aliases() == (1, None)

    assert project.promote(3, BETTER).champion == 3
    assert project.client.get_model_version(MODEL, "3").tags["verdict"] == "promoted"
    assert project.aliases() == (3, 1)
    assert rollback(project.root, "x") == 1
    assert project.aliases() == (1, 3)


def test_a_champion_of_another_protocol_is_scored_again_once(project: Project) -> None:
    project.promote(1, GOOD)
    seen = []

    def rescore(package: Package) -> Evaluation:
        seen.append(package.digest)
        return replace(GOOD, fid=50.0, protocol="q")

    refused = project.promote(2, replace(BETTER, protocol="q"), rescore)
    assert refused.verdict.reasons == ("FID 90 is not below the champion's 50",)
    assert seen == [content(1).digest]
    project.promote(3, replace(BETTER, protocol="q"), never)  # its scores under q are kept
    assert project.promote(4, BETTER, never).verdict.promoted  # and so are those under p


def test_a_crash_before_the_alias_is_mended_by_running_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_crown", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            project.promote(1, GOOD)
    assert project.aliases() == (None, None)
    assert project.promote(1, GOOD).champion == 1
    assert project.versions() == 1
    experiment = project.client.get_experiment_by_name(MODEL)
    assert len(project.client.search_logged_models([experiment.experiment_id])) == 1


def test_a_champion_moved_from_another_machine_is_not_overwritten(project: Project) -> None:
    project.promote(1, GOOD)
    project.promote(2, FLOOR)

    def someone_else(package: Package) -> Evaluation:  # acts between reading the champion and the alias
        project.client.set_registered_model_alias(MODEL, CHAMPION, "2")
        return replace(GOOD, protocol="q")

    with pytest.raises(UserError, match="another promotion moved the champion"):
        project.promote(3, replace(BETTER, protocol="q"), someone_else)
    assert project.aliases() == (2, None)


def _in_a_process(root: Path, run: str, seed: int, candidate: Evaluation) -> None:
    promote(root, "x", run, content(seed), candidate, FLOOR, CEILING, never)


def test_of_two_promotions_at_once_the_better_one_stays(project: Project) -> None:
    context = multiprocessing.get_context("spawn")
    both = [
        context.Process(target=_in_a_process, args=(project.root, project.run, seed, scores))
        for seed, scores in ((1, GOOD), (2, BETTER))
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    champion = project.aliases()[0]
    assert champion is not None
    assert "| this model | 90 | 21 |" in project.client.get_model_version(MODEL, str(champion)).description
    assert project.versions() == 2


def test_without_a_previous_champion_there_is_no_way_back(project: Project) -> None:
    project.promote(1, GOOD)
    with pytest.raises(UserError, match="no previous champion"):
        rollback(project.root, "x")


def test_a_run_that_the_store_does_not_know_is_refused(tmp_path: Path) -> None:
    """As after `rm -r mlruns`: DVC still has the weights, the registry has nothing."""
    assert champion_version(tmp_path, "x") is None
    open_run(tmp_path, "x", "another", {}, {})
    with pytest.raises(UserError, match="dvc repro -f train"):
        promote(tmp_path, "x", "0" * 32, content(0), GOOD, FLOOR, CEILING, never)
    assert champion_version(tmp_path, "x") is None

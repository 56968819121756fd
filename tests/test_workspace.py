"""A run's folder: the asked commit, the run's own params.yaml, checked before anything changes; what ran is in git."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from dvc_repo import git

from dpgan.data.versions import dvc, settings
from dpgan.errors import TemporaryError, UserError
from flows.workspace import Workspace, at_work, keep, open_workspace

PARAMS = """\
# The run.
dataset: toyscapes # a folder of data/
raw: data/toyscapes/raw
train:
  preset: null # the card's
  images: null
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    for name in ("toyscapes", "camvid"):
        shutil.copytree(ROOT / "data" / name, root / "data" / name, ignore=shutil.ignore_patterns("raw"))
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore"):
        shutil.copy2(ROOT / name, root / name)
    (root / "params.yaml").write_text(PARAMS)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    monkeypatch.setenv("DPGAN_REPOSITORY", f"file://{root}")
    monkeypatch.delenv("DPGAN_WORKSPACES", raising=False)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "none"))
    return root


@pytest.fixture
def enter() -> object:
    """`open_workspace` for tests; its lock is let go in the end."""
    held: list[int] = []

    def enter(
        dataset: str = "toyscapes",
        overrides: dict[str, Any] | None = None,
        revision: str | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Workspace:
        made = open_workspace(dataset, revision, overrides or {}, "amber-fox", tell)
        held.append(made.lock)
        return made

    yield enter
    for descriptor in held:
        with suppress(OSError):  # a test has let it go
            os.close(descriptor)


Enter = Callable[..., Workspace]


def test_overrides_change_their_lines_and_no_other(project: Path, enter: Enter) -> None:
    made = enter(overrides={"train": {"images": 600}, "run.workers": 1, "evaluate.noise_seeds": 5})
    text = (made.root / "params.yaml").read_text()
    assert text.startswith(PARAMS.replace("images: null", "images: 600"))
    assert yaml.safe_load(text)["run"] == {"workers": 1}
    assert made.params.evaluate.noise_seeds == 5
    assert git(project, "status", "--porcelain") == ""
    assert (project / "params.yaml").read_text() == PARAMS


def test_the_run_is_in_git_before_it_starts_and_after_it(project: Path, enter: Enter) -> None:
    asked = git(project, "rev-parse", "HEAD")
    made = enter(overrides={"train.images": 600})
    assert "images: 600" in git(project, "show", "runs/toyscapes:params.yaml")
    assert git(project, "rev-parse", "runs/toyscapes^") == asked
    assert git(made.root, "rev-parse", "HEAD") == git(project, "rev-parse", "runs/toyscapes")
    assert git(made.root, "status", "--porcelain") == "", "the commit on the MLflow run is what runs"
    (made.root / "dvc.lock").write_text("schema: '2.0'\n")
    (made.root / "build").mkdir()
    (made.root / "build/scores.json").write_text("{}")
    commit = keep(made, "amber-fox: done")
    assert git(project, "rev-parse", "runs/toyscapes") == commit
    assert (
        git(project, "ls-tree", "-r", "--name-only", "runs/toyscapes", "dvc.lock", "build")
        == "build/scores.json\ndvc.lock"
    )


def test_runs_follow_each_other_on_their_branch(project: Path) -> None:
    for images in (600, 700):
        made = open_workspace("toyscapes", None, {"train.images": images}, f"run-{images}", print)
        keep(made, f"run-{images}: done")
        os.close(made.lock)
    told = git(project, "log", "--first-parent", "--format=%s", "runs/toyscapes").splitlines()
    assert [line.split(" at ")[0] for line in told] == [
        "run-700: done", "run-700: toyscapes", "run-600: done", "run-600: toyscapes", "first",
    ]  # fmt: skip
    assert "+  images: 700" in git(project, "diff", "runs/toyscapes~2", "runs/toyscapes", "--", "params.yaml")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"train.imges": 600}, "unknown key 'imges'; did you mean 'images'"),
        ({"trian": {"images": 600}}, "unknown key 'trian'; did you mean 'train'"),
        ({"seed": "many"}, "seed"),
        ({"raw.of": 1}, "raw in params.yaml has no keys below it"),
        ({"dataset": "camvid"}, "the dataset is a parameter of its own"),
        ({"train.preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_changed(
    project: Path, enter: Enter, overrides: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        enter(overrides=overrides)
    assert told in str(error.value)
    assert git(project, "branch", "--format=%(refname:short)") == "main"
    assert enter().params.seed == 0, "and the workspace is free again"


@pytest.mark.usefixtures("project")
def test_an_unknown_revision(enter: Enter) -> None:
    with pytest.raises(UserError, match="revision 'nowhere': the repository has no such branch, tag or commit"):
        enter(revision="nowhere")


@pytest.mark.parametrize("name", ["toyscape", "../toyscapes"])
def test_an_unknown_dataset(project: Path, enter: Enter, name: str) -> None:
    with pytest.raises(UserError, match=r"dataset"):
        enter(name)
    assert not (project / ".services/workspaces/toyscapes").exists()


def test_raw_pairs_stay_where_they_are(project: Path, enter: Enter) -> None:
    raw = project / "data/camvid/raw"
    with pytest.raises(UserError) as error:
        enter("camvid")
    assert str(raw) in str(error.value)
    assert "http" in str(error.value)
    raw.mkdir()
    assert enter("camvid").params.raw == str(raw)


def test_the_cache_and_the_remote_are_the_project_s(project: Path, enter: Enter) -> None:
    made = enter()
    assert settings(made.root)["cache.dir"] == str(project / ".dvc/cache")
    assert settings(made.root)["remote.storage.url"] == str(project / "storage")


def test_a_revision_is_taken_and_what_is_not_committed_is_not(project: Path, enter: Enter) -> None:
    git(project, "checkout", "-qb", "longer")
    (project / "params.yaml").write_text(PARAMS.replace("images: null", "images: 900"))
    git(project, "commit", "-qam", "longer")
    git(project, "checkout", "-q", "main")
    (project / "params.yaml").write_text(PARAMS.replace("images: null", "images: 5"))
    told: list[str] = []
    made = enter(tell=told.append, revision="longer")
    assert made.params.train["images"] == 900
    assert "not committed" in told[0]


def test_a_second_run_waits_and_finds_what_the_first_one_left(project: Path) -> None:
    first = open_workspace("toyscapes", None, {"train.images": 5}, "one", print)
    (first.root / "runs").mkdir()
    (first.root / "runs/checkpoint").touch()
    (first.root / "stray.py").touch()
    told, opened = threading.Event(), []
    second = threading.Thread(
        target=lambda: opened.append(open_workspace("toyscapes", None, {}, "two", lambda _: told.set()))
    )
    second.start()
    assert told.wait(30)
    assert not opened
    os.close(first.lock)
    second.join(30)
    (made,) = opened
    os.close(made.lock)
    assert (made.root / "runs/checkpoint").exists(), "an interrupted training is gone on with"
    assert not (made.root / "stray.py").exists()
    assert made.params.train["images"] is None


def test_two_datasets_do_not_wait(project: Path, enter: Enter) -> None:
    (project / "data/camvid/raw").mkdir()
    assert enter("toyscapes").root != enter("camvid").root


def test_a_repository_elsewhere_needs_a_folder_for_its_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPGAN_REPOSITORY", "https://git.example.org/dpgan.git")
    monkeypatch.delenv("DPGAN_WORKSPACES", raising=False)
    with pytest.raises(UserError, match="DPGAN_WORKSPACES is not set"):
        open_workspace("toyscapes", None, {}, "run", print)


def leave(made: Workspace) -> None:
    """The locks of a run that was killed hard; process 1, another program by now, has the number of its DVC."""
    (made.root / ".git/index.lock").touch()
    (made.root / ".git/refs/remotes/origin/runs").mkdir(parents=True, exist_ok=True)
    (made.root / ".git/refs/remotes/origin/runs/toyscapes.lock").touch()
    tmp = made.root / ".dvc/tmp"
    tmp.mkdir(exist_ok=True)
    held = {"write": {str(made.root / "build/made"): {"pid": 1, "cmd": "dvc repro"}}, "read": {}}
    (tmp / "rwlock").write_text(json.dumps(held))


@pytest.mark.usefixtures("project")
def test_a_run_that_was_killed_blocks_no_later_one(enter: Enter) -> None:
    made = enter()
    leave(made)
    os.close(made.lock)
    made = enter(overrides={"seed": 1})
    (made.root / "dvc.yaml").write_text("stages: {made: {cmd: mkdir -p build && touch build/made, outs: [build/made]}}")
    dvc(made.root, "repro", "made")
    keep(made, "done")


@pytest.mark.usefixtures("project")
def test_locks_of_a_person_at_work_are_left_alone(enter: Enter) -> None:
    made = enter()
    os.close(made.lock)
    leave(made)
    with subprocess.Popen(["git", "hash-object", "--stdin"], cwd=made.root / "data", stdin=subprocess.PIPE) as person:
        assert at_work(made.root) == person.pid
        with pytest.raises(TemporaryError, match=f"process {person.pid} works there"):
            enter()
        assert (made.root / ".git/index.lock").exists()
        person.kill()
    assert at_work(made.root) is None


def test_a_half_made_clone_is_made_anew(project: Path, enter: Enter) -> None:
    half = project / ".services/workspaces/toyscapes.new/.git"
    half.mkdir(parents=True)
    (half / "config").write_text("[core")
    assert enter().commit == git(project, "rev-parse", "HEAD")


def test_only_what_talks_to_another_machine_may_pass(
    project: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DPGAN_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("DPGAN_REPOSITORY", "http://user:secret@127.0.0.1:9/dpgan.git")
    with pytest.raises(TemporaryError, match="git clone") as away:
        enter()
    assert "secret" not in str(away.value)
    monkeypatch.setenv("DPGAN_REPOSITORY", str(tmp_path))  # a folder that is no repository
    with pytest.raises(UserError, match="not a git repository") as wrong:
        enter()
    assert not isinstance(wrong.value, TemporaryError)


def test_what_is_kept_again_is_kept_once(project: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    made = enter()
    monkeypatch.setenv("DPGAN_REPOSITORY", "http://127.0.0.1:9/dpgan.git")
    git(made.root, "remote", "set-url", "origin", "http://127.0.0.1:9/dpgan.git")
    with pytest.raises(TemporaryError, match="git push"):
        keep(made, "amber-fox: done")
    git(made.root, "remote", "set-url", "origin", str(project))
    keep(made, "amber-fox: done")
    assert git(project, "log", "--first-parent", "--format=%s", "-2", "runs/toyscapes").splitlines()[0] == (
        "amber-fox: done"
    )
    assert git(project, "rev-list", "--count", "--first-parent", "runs/toyscapes") == "3"


@pytest.mark.parametrize(("url", "passes"), [("s3://dvc", True), ("folder", False)])
def test_a_dvc_remote_on_another_machine_may_come_back(
    project: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch, url: str, passes: bool
) -> None:
    made = enter()
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_MAX_ATTEMPTS": "1",
                        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    where = url if passes else str(project / "file/below")
    (project / "file").touch()
    dvc(made.root, "config", "--local", "remote.storage.url", where)
    (made.root / "made").write_text("data")
    dvc(made.root, "add", "made")
    with pytest.raises(UserError, match="dvc push") as error:
        keep(made, "done")
    assert isinstance(error.value, TemporaryError) == passes

"""dpgan.datasets: folders become datasets whole or not at all; a check changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from folders import make
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan import datasets
from dpgan.cli import main
from dpgan.errors import UserError
from dpgan.labels import load_card

SPLIT = ("images/{split}/{id}.jpg", "labels/{split}/{id}.png")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the shipped cards; the current folder of the test."""
    root = tmp_path / "project"
    for name in datasets.PUBLISHED:
        (root / "data" / name).mkdir(parents=True)
        shutil.copy(ROOT / "data" / name / "dataset.yaml", root / "data" / name)
    (root / "params.yaml").write_text("dataset: camvid\nraw: elsewhere\n")
    (root / ".dvc").mkdir()
    monkeypatch.chdir(root)
    return root


def everything(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    """What a command says, its line breaks taken out."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return " ".join((said.out + said.err).split())


def test_add_copies_versions_and_describes(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q", "-f"]):
        subprocess.run(command, cwd=project, check=True)
    folder = make(tmp_path / "mine", "{id}.jpg", "{id}_mask.png", counts=(12, 8))
    (folder / ".DS_Store").write_bytes(b"x")
    before = everything(folder)
    said = run(capsys, "data", "add", "mine", folder)
    assert "Found: - Photos {id}.jpg, label maps {id}_mask.png." in said
    assert "Suspicious: - There is no split: 8 of 20 pairs" in said
    assert "dataset: mine raw: data/mine/raw then: dpgan data check mine" in said
    assert everything(folder) == before
    raw = project / "data/mine/raw"
    copied = everything(raw)
    assert len(copied.pop("splits/val.txt").split()) == 8
    assert len(copied.pop("splits/train.txt").split()) == 12
    assert copied == {path: content for path, content in before.items() if path != ".DS_Store"}
    assert "md5: " in (project / "data/mine/raw.dvc").read_text()
    card = load_card("mine")
    assert [info.id for info in card.classes] == [0, 7, 255]
    assert "There is no split" in (project / "data/mine/README.md").read_text()
    said = run(capsys, "data", "check", "mine")
    assert "mine: 12 in train, 8 in val. Fit to train on: no errors, no warnings, no pairs left out." in said


def test_add_without_a_copy_leaves_the_files(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    said = run(capsys, "data", "add", "mine", folder, "--no-copy")
    assert f"raw: {folder}" in said
    assert sorted(p.name for p in (project / "data/mine").iterdir()) == ["README.md", "accepted.json", "dataset.yaml"]


def test_without_a_copy_a_split_is_the_users_to_write(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "mine", "{id}.jpg", "{id}.png")
    before = everything(tmp_path)
    said = run(capsys, "data", "add", "mine", folder, "--no-copy", code=2)
    assert "write splits/train.txt, splits/val.txt there yourself" in said
    said = run(capsys, "data", "check", folder, code=2)
    assert "has no split; write splits/train.txt and splits/val.txt there" in said
    assert everything(tmp_path) == before


def test_the_card_that_is_written_is_the_card_that_is_read(project: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    names = ["no", 'it\'s: a "name"', "traffic light", "7", "[x]", "ünï", "void"]
    (folder / "classes.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    assert datasets.add("mine", folder, copy=False) == 0
    card = load_card("mine")
    assert [info.name for info in card.classes] == [*names, "class_7", "void_2"]
    assert [info.name for info in card.classes if info.void] == ["void", "void_2"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_published_dataset_is_recognised(
    name: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = WRITERS[name](tmp_path / "raw", Counts(9, 8), size=(32, 64))
    before = everything(tmp_path)
    said = run(capsys, "data", "add", "mine", folder)
    assert "This looks like" in said
    assert f"dataset: {name} raw: {folder}" in said
    assert everything(tmp_path) == before
    said = run(capsys, "data", "check", folder)
    assert f"{name}: 9 in train, 8 in val. Fit to train on: no errors" in said
    assert (project / f"build/check/{name}/report.html").is_file()


def test_another_edition_is_told(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "ade", "images/{split}/ADE_{id}.jpg", "images/{split}/ADE_{id}_seg.png")
    for command in (["add", "mine"], ["check"]):
        assert "this is the full edition" in run(capsys, "data", *command, folder, code=2)


@pytest.mark.parametrize(
    ("name", "folder", "says"),
    [
        ("Mine", "mine", "'Mine' cannot name a dataset"),
        ("my data", "mine", "cannot name a dataset"),
        ("../mine", "mine", "cannot name a dataset"),
        ("-mine", "mine", "the following arguments are required"),
        ("camvid", "mine", "data/camvid is already there; choose another name"),
        ("new", "nowhere", "nowhere: no such folder; give the folder"),
        ("new", "empty", "empty: an empty folder; give the folder"),
        ("new", "mine/000.jpg", "no such folder"),
    ],
)
def test_mistakes_of_add(
    name: str, folder: str, says: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "mine", "{id}.jpg", "{id}.png")
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    if name.startswith("-"):
        with pytest.raises(SystemExit):
            main(["data", "add", name, str(tmp_path / folder)])
        assert says in capsys.readouterr().err
    else:
        assert says in run(capsys, "data", "add", name, tmp_path / folder, code=2)
    assert everything(tmp_path) == before


def test_nothing_is_left_where_dvc_fails(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    before = everything(tmp_path)
    assert "dvc add data/mine/raw: " in run(capsys, "data", "add", "mine", folder, code=2)  # no git, no `dvc init`
    shutil.rmtree(project / ".dvc")
    assert "run `dvc init` here, or use --no-copy" in run(capsys, "data", "add", "mine", folder, code=2)
    (project / "params.yaml").unlink()
    assert "run this in the project's root folder" in run(capsys, "data", "add", "mine", folder, code=2)
    (project / "params.yaml").write_bytes(before["project/params.yaml"])
    assert everything(tmp_path) == before


def test_nothing_is_left_where_the_disk_is_too_small(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    before = everything(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"a versioned copy needs .* GB are free; make room, or use --no-copy"):
        datasets.add("mine", folder, copy=True)
    assert everything(tmp_path) == before


def test_nothing_is_left_where_a_file_cannot_be_copied(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    (folder / "notes.txt").symlink_to("nowhere")
    before = everything(tmp_path)
    said = run(capsys, "data", "add", "mine", folder, code=2)
    assert "notes.txt: cannot be copied: No such file or directory" in said
    assert everything(tmp_path) == before


def test_check_tells_what_is_broken_and_changes_nothing_else(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    for number in range(6):
        (folder / f"labels/train/{number:03d}.png").unlink()
    before = everything(tmp_path)
    said = run(capsys, "data", "check", folder, "--report", tmp_path / "out", code=1)
    assert "No card fits; checked as `dpgan data add` would describe it." in said
    assert "has no label map (expected labels/train/000.png)" in said
    assert "and 3 more: in the report" in said
    assert "Not fit to train on: " in said
    assert (tmp_path / "out/report.html").is_file()
    shutil.rmtree(tmp_path / "out")
    assert everything(tmp_path) == before


def test_a_report_replaces_reports_only(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "mine", *SPLIT)
    before = everything(folder)
    assert "and is no report" in run(capsys, "data", "check", folder, "--report", folder, code=2)
    assert everything(folder) == before
    for _ in range(2):
        run(capsys, "data", "check", folder, "--report", tmp_path / "out")


def test_check_by_name_reads_the_raw_folder_of_params(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "elsewhere: no such folder; set `raw` in params.yaml" in run(capsys, "data", "check", "camvid", code=2)
    assert "data/ade20k/raw: no such folder" in run(capsys, "data", "check", "ade20k", code=2)


def test_check_of_what_is_neither(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "data", "check", "camvit", code=2)
    assert "unknown folder or dataset 'camvit'; did you mean 'camvid'?" in said


def test_details_that_look_like_markup_are_printed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "mine", "images/{split}/[b]{id}.jpg", "labels/{split}/[b]{id}.png")
    Image.fromarray(np.zeros((48, 96), np.uint8)).save(folder / "labels/train/[b]999.png")
    said = run(capsys, "data", "check", folder, code=1)
    assert "labels/train/[b]999.png: has no photo" in said

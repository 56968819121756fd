"""What a user can do wrong: one clear error each, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from raw_pairs import make_raw

from dpgan import stages
from dpgan.cli import main

CARD = """
name: tiny
title: Tiny
licence: none
layout: {image: "images/{split}/{id}.png", label: "labels/{split}/{id}.png"}
splits: {train: train, val: test}
size: [32, 64]
preset: toyscapes
min_pairs: 2
classes:
  - {id: 0, name: sky, color: [0, 0, 255], evaluate: true}
  - {id: 7, name: road, color: [9, 9, 9], evaluate: true}
  - {id: 255, name: void, color: [0, 0, 0], void: true}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one tiny dataset and its raw folder; the current folder of the test."""
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "tiny" / "dataset.yaml").write_text(CARD)
    (tmp_path / "params.yaml").write_text("dataset: tiny\nraw: raw\n")
    make_raw(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that must fail as a user's mistake."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_the_data_stages_run(project: Path) -> None:
    assert main(["index"]) == main(["validate"]) == main(["prepare"]) == 0
    assert (project / "build/validation/report.html").exists()


def test_a_faulty_pair_is_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the card's limit: named with its remedy, and not in what training reads."""
    shutil.rmtree(project / "raw")
    make_raw(project / "raw", train=4)
    (project / "data/tiny/dataset.yaml").write_text(CARD + "max_faulty: 0.25\n")
    (project / "raw/images/train/2.png").write_bytes(b"x")
    assert main(["index"]) == main(["validate"]) == 0
    told = capsys.readouterr().out
    assert "images/train/2.png: cannot be decoded: not an image file\n  Copy the file from the source again" in told
    assert "left out: train/2; build/validation/quarantine.json says why" in told
    assert main(["prepare"]) == 0
    assert '"train/2"' not in (project / "build/prepared/meta.json").read_text()


def test_unknown_stage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'prepare'" in fails(capsys, "prepair")


def test_unknown_data_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "dpgan data: unknown command 'chek'; did you mean 'check'?" in fails(capsys, "data", "chek")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("dataset: tiny\nraw: raw\nsede: 1\n", "unknown key 'sede'; did you mean 'seed'?"),
        ("dataset: tiny\nraw: raw\nrun: {worker: 1}\n", "did you mean 'workers'?"),
        ("dataset: tiny\nraw: raw\nrun: {workers: two}\n", "run.workers"),
        ("dataset: tiny\nraw: raw\ntrain: {imges: 5}\n", "did you mean 'images'?"),
        ("dataset: tiny\nraw: raw\ntrain: {images: many}\n", "images"),
        ("dataset: tiny\nraw: raw\ntrain: {losses: {percptual: 1}}\n", "did you mean 'perceptual'?"),
        ("dataset: tiny\nraw: raw\ntrain: {preset: camvit}\n", "did you mean 'camvid'?"),
        ("dataset: tinny\nraw: raw\n", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        ("dataset: tiny\n", "missing key 'raw'"),
        ("dataset: [tiny\n", "not valid YAML"),
        ("just a sentence\n", "expected `key: value` lines"),
    ],
)
def test_bad_params(project: Path, capsys: pytest.CaptureFixture[str], params: str, expected: str) -> None:
    (project / "params.yaml").write_text(params)
    error = fails(capsys, "index")
    assert expected in error
    assert "params.yaml" in error
    assert not (project / "build").exists()


def test_no_params_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").unlink()
    assert "params.yaml: no such file" in fails(capsys, "index")


def test_missing_raw_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project / "raw")
    assert "params.yaml" in fails(capsys, "index")


def test_no_images(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project / "raw" / "images")
    assert "images/" in fails(capsys, "index")
    assert not (project / "build/index.parquet").exists()


def test_unmatched_pair(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "raw/labels/train/1.png").unlink()
    assert main(["index"]) == 0
    assert "train/1" in fails(capsys, "validate")


def test_corrupt_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = project / "raw/images/train/2.png"
    photo.write_bytes(photo.read_bytes()[:200])
    assert main(["index"]) == 0
    assert "images/train/2.png" in fails(capsys, "validate")


def test_label_id_outside_the_card(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "raw/labels/test/0.png"
    image = Image.open(path)
    image.putpixel((3, 3), 99)
    image.save(path)
    assert main(["index"]) == 0
    error = fails(capsys, "validate")
    assert "99" in error
    assert "labels/test/0.png" in error


@pytest.mark.parametrize(
    ("stage", "before"),
    [("validate", "index"), ("judge", "prepare"), ("train", "prepare"), ("evaluate", "train"), ("promote", "train")],
)
def test_a_stage_names_the_stage_before_it(
    project: Path, capsys: pytest.CaptureFixture[str], stage: str, before: str
) -> None:
    assert f"dvc repro {before}" in fails(capsys, stage)
    assert not (project / "mlruns").exists()


def test_vgg19_that_is_missing_stops_a_training_before_its_run(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "raw")
    make_raw(project / "raw", train=10)
    params = "dataset: tiny\nraw: raw\ntrain: {holdout: 8, perceptual_network: vgg19}\n"
    (project / "params.yaml").write_text(params)
    assert main(["index"]) == main(["validate"]) == main(["prepare"]) == 0
    assert "set run.vgg19 to its weights" in fails(capsys, "train")
    (project / "params.yaml").write_text(params + "run: {vgg19: vgg.pth}\n")
    assert f"{project / 'vgg.pth'}: no such file" in fails(capsys, "train")
    (project / "vgg.pth").write_bytes(b"random weights")
    assert "another file, or damaged" in fails(capsys, "train")
    assert not (project / "mlruns").exists()
    assert not (project / "runs").exists()


def test_a_published_judge_is_checked_and_scores_the_real_photos(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_judges_transformers import checkpoint

    from dpgan.files import file_sha256

    assert main(["index"]) == main(["validate"]) == main(["prepare"]) == 0
    checkpoint(project / "segformer", names=["road", "sky"])
    params = "dataset: tiny\nraw: raw\n"
    prefix = file_sha256(project / "segformer/model.safetensors")[:8]
    for judge, message in [
        ("kind: trainde", "judge.kind: Input should be 'trained', 'drn105', 'upernet101' or 'transformers'"),
        ("kind: drn105, weight: x", "unknown key 'judge.weight'; did you mean 'weights'?"),
        ("kind: drn105, sha256: [x]", "judge.sha256.0: String should match"),
        ("kind: drn105, weights: x", f"{project / 'x'}: no such file; get drn-d-105_ms_cityscapes.pth from"),
        ("kind: transformers", "judge.weights is not set; it must be the folder that"),
        ("kind: transformers, weights: segformer", "set judge.sha256 to that"),
    ]:
        (project / "params.yaml").write_text(f"{params}judge: {{{judge}}}\n")
        assert message in fails(capsys, "judge")
    assert not (project / "build/judge.safetensors").exists()
    right = f"judge: {{kind: transformers, weights: segformer, sha256: [{prefix!r}]}}\n"
    (project / "params.yaml").write_text(params + right)
    assert main(["judge"]) == 0
    told = json.loads((project / "build/judge.json").read_text())
    assert (told["judge"], told["n"]) == ("segformer", 2)
    assert 0 <= told["real_photos"]["miou_segformer"] <= 100
    assert "judge     segformer: mIoU" in capsys.readouterr().out


def test_port_in_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fails(capsys, "ui", "--port", str(port))
    assert f"port {port}" in error
    assert "--port" in error


def test_what_may_pass_has_its_own_exit_code(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("DPGAN_RECORDS", str(tmp_path / "records"))
    assert main(["registry", "list"]) == 75
    (failure,) = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    error = capsys.readouterr().err
    assert error == f"error: {failure['message']}\n"
    assert "does not answer" in error
    assert "secret" not in error
    assert failure["exit_code"] == 75


def test_a_bug_keeps_its_traceback_and_is_recorded(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise RuntimeError("Connection refused, says a bug")

    monkeypatch.setitem(main.__globals__["STAGES"], "index", broken)
    monkeypatch.setenv("DPGAN_RECORDS", str(tmp_path / "records"))
    with pytest.raises(RuntimeError):
        main(["index"])
    assert json.loads((tmp_path / "records").read_text()) == {
        "kind": "failure", "exit_code": 1, "message": "RuntimeError: Connection refused, says a bug",
    }  # fmt: skip


def test_interruption_has_its_own_exit_code(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__["STAGES"], "index", interrupted)
    assert main(["index"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_every_stage_of_dvc_yaml_is_a_command() -> None:
    import yaml

    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(pipeline) == ["index", "validate", "prepare", "judge", "train", "evaluate", "promote"]
    for name, stage in pipeline.items():
        assert stage["cmd"] == f"dpgan {name}"
        assert hasattr(stages, name)


def test_no_ray_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from dpgan.config import RunSettings
    from dpgan.errors import UserError
    from dpgan.training.launch import start_ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have started one
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(UserError, match="no Ray cluster lets us join"):
            start_ray(RunSettings())

"""Versions of a dataset of one's own, through an S3 server: added, pushed, pulled on a fresh clone, gone back to."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dpgan.data.toyscapes import render_scene
from integration.conftest import Project, make_clone

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server process of our own, with a bucket `data` in it."""
    import boto3

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "s3.log").open("w") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, (tmp_path / "s3.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="data")
        yield address
    finally:
        server.kill()
        server.wait()


def write_pair(folder: Path, split: str, index: int) -> None:
    scene = render_scene(0, index, (32, 64))
    for kind, pixels in (("photos", scene.image), ("masks", scene.label)):
        path = folder / kind / split / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def made(project: Project) -> dict[str, bytes]:
    """Index and prepared data, byte by byte."""
    files = [project.root / "build/index.parquet", *(project.root / "build/prepared").iterdir()]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in files}


def test_a_dataset_travels_through_s3_and_back_in_time(s3: str, tmp_path: Path) -> None:
    project = make_clone(tmp_path / "project")
    for split, scenes in (("train", range(16)), ("val", range(16, 24))):
        for index in scenes:
            write_pair(tmp_path / "mine", split, index)
    assert "16" in project.run("dpgan", "data", "add", "streets", str(tmp_path / "mine"))
    project.edit(
        "params.yaml", "dataset: toyscapes\nraw: data/toyscapes/raw", "dataset: streets\nraw: data/streets/raw"
    )
    project.run("dvc", "remote", "modify", "storage", "url", "s3://data/dpgan")
    project.run("dvc", "remote", "modify", "storage", "endpointurl", s3)
    project.run("dvc", "repro", "prepare")
    project.commit("first version")
    project.run("dvc", "push")
    first = made(project)

    raw = project.root / "data/streets/raw"
    for kind in ("photos", "masks"):
        (raw / kind / "train/000.png").unlink()
        (raw / kind / "train/001.png").rename(raw / kind / "val/001.png")
    write_pair(raw, "train", 99)
    label = raw / "masks/train/002.png"
    pixels = Image.open(label).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    label.unlink()
    pixels.save(label)
    project.run("dvc", "add", "data/streets/raw")
    project.run("dvc", "repro", "prepare")
    project.commit("second version")
    project.run("dvc", "push")
    second = made(project)
    assert first["build/index.parquet"] != second["build/index.parquet"]

    shutil.rmtree(project.root / ".dvc/cache")
    subprocess.run(["git", "clone", "-q", str(project.root), str(tmp_path / "fresh")], check=True)
    fresh = Project(tmp_path / "fresh")
    fresh.run("dvc", "pull", "--allow-missing")  # the stages behind prepare were not run
    assert made(fresh) == second
    assert "up to date" in fresh.run("dvc", "status", "prepare")
    changes = fresh.run("dpgan", "data", "diff", "HEAD~1", "HEAD")
    for line in ("1 added", "train/099", "1 removed", "train/000", "train/001 -> val/001", "train/002: label map"):
        assert line in changes
    assert "the same pairs, pixel by pixel" in fresh.run("dpgan", "data", "diff", "HEAD")

    fresh.run("git", "checkout", "-q", "HEAD~1")
    fresh.run("dvc", "pull", "--allow-missing")  # the stages behind prepare were not run
    assert made(fresh) == first
    (fresh.root / "build/index.parquet").unlink()
    fresh.run("dpgan", "index")
    assert made(fresh) == first, "from the raw files of the first version, bit for bit"

    shutil.rmtree(fresh.root / ".dvc/cache")
    fresh.run("dvc", "remote", "modify", "storage", "url", "s3://data/elsewhere")
    error = fresh.run("dpgan", "data", "diff", "nonsense", code=2)
    assert "'nonsense' is neither a file nor a git revision" in error

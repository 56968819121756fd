"""Files that are not what they should be: every command of the data says so in a sentence, without a traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from raw_pairs import make_raw
from test_cli import CARD

from dpgan.cli import main
from dpgan.data import index
from dpgan.data.layout import walk
from dpgan.errors import UserError

PHOTO = "raw/images/train/1.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one tiny dataset that is indexed, validated, prepared and accepted."""
    root = tmp_path_factory.mktemp("made") / "project"
    (root / "data" / "tiny").mkdir(parents=True)
    (root / "data" / "tiny" / "dataset.yaml").write_text(CARD)
    (root / "params.yaml").write_text("dataset: tiny\nraw: raw\n")
    make_raw(root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["index"]) == main(["validate"]) == main(["prepare"]) == main(["data", "accept"]) == 0
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the current folder of the test."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(index, "LOCKED", 0.1)
    return tmp_path / "project"


def instead(path: str, make: Callable[[Path], object]) -> Callable[[], object]:
    """Puts another thing in the place of a file."""

    def change() -> object:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
        return make(Path(path))

    return change


def write(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> socket.socket:
    place = os.open(path.parent, os.O_RDONLY)  # the path of a socket has at most 108 characters
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{place}/{path.name}")
    os.close(place)
    return server


def lock() -> sqlite3.Connection:
    database = sqlite3.connect("build/scanned.sqlite", isolation_level=None)
    database.execute("begin exclusive")
    return database


def cut(path: Path) -> None:
    shutil.copy("build/prepared/train_labels.npy", path)


class Situation(NamedTuple):
    """What is done to the project, the command after it, its exit code and what it says."""

    name: str
    change: Callable[[], object]
    command: str
    says: str
    code: int = 2


def params(more: str) -> Callable[[], object]:
    """Settings on top of the project's."""
    return lambda: Path("params.yaml").write_text(f"dataset: tiny\nraw: raw\n{more}\n")


def one_to_score() -> None:
    """A card that one validation pair is enough for, and no more of them, nor of what was made of them."""
    for kind in ("images", "labels"):
        Path(f"raw/{kind}/test/1.png").unlink()
    Path("data/tiny/dataset.yaml").write_text(CARD.replace("min_pairs: 2", "min_pairs: 1"))
    main(["index"])


def nothing_to_score() -> None:
    """Validation maps that hold no evaluated class."""
    Path("data/tiny/dataset.yaml").write_text(CARD.replace("9], evaluate: true", "9]"))
    for path in Path("raw/labels/test").iterdir():
        image = Image.open(path)
        image.point(lambda value: value or 7).save(path)
    assert main(["index"]) == 0


CHECK, DIFF, ACCEPT = "data check tiny", "data diff build/index.parquet", "data accept"
KINDS: list[tuple[str, Callable[[Path], object], str]] = [
    ("folder", Path.mkdir, r"has no photo \(expected images/train/1\.png, which is a folder\)"),
    ("pipe", os.mkfifo, r"has no photo \(expected images/train/1\.png, which is a named pipe\)"),
    ("socket", listen, r"has no photo \(expected images/train/1\.png, which is a socket\)"),
    ("device", link("/dev/zero"), r"has no photo \(expected images/train/1\.png, which is a device\)"),
    ("broken link", link("../annex/1"), r"images/train/1\.png: is a broken link: nothing is at \.\./annex/1"),
    ("circle", link("1.png"), r"images/train/1\.png: is a link that leads back to itself"),
]
SITUATIONS = [
    *(Situation(f"{name} for a photo, {command}", instead(PHOTO, make), command, says, code)
      for name, make, says in KINDS for command, code in ((CHECK, 1), ("data check raw", 1))),
    Situation("pipe for a photo, prepare", instead(PHOTO, os.mkfifo), "prepare", "is a named pipe; `dvc repro"),
    Situation("broken link, prepare", instead(PHOTO, link("x")), "prepare", r"1\.png: is a broken link.*`dvc repro"),
    Situation("link loop, index", lambda: Path("raw/images/train/up").symlink_to(".."), "index",
              r"raw/images/train/up.*: a link loop: .*remove the link"),
    Situation("link loop, check", lambda: Path("raw/up").symlink_to("."), "data check raw", "a link loop"),
    Situation("empty folder, index", instead("raw", Path.mkdir), "index", "no file at all"),
    Situation("vanished folder, index", instead("raw", lambda path: None), "index", "raw: no"),
    Situation("vanished folder, prepare", instead("raw", lambda path: None), "prepare", "is not there; `dvc repro"),
    Situation("a name with a line break, index", lambda: Path("raw/images/train/a\nb.png").touch(), "index",
              r"1 name has a line break .*'images/train/a\\nb\.png'; rename"),
    Situation("a name with a line break, check", lambda: Path("raw/images/train/a\nb.png").touch(), "data check raw",
              r"1 name has a line break .*'images/train/a\\nb\.png'; rename"),
    Situation("a name that is not UTF-8", lambda: Path(os.fsdecode(b"raw/images/train/\xfc.png")).touch(), "index",
              r"'images/train/\\udcfc\.png'; rename"),
    Situation("corrupt memory", instead("build/scanned.sqlite", write("no database, " * 99)), "index",
              r"build/scanned\.sqlite: .*not a database.*delete it"),
    Situation("folder for the memory", instead("build/scanned.sqlite", Path.mkdir), "index", "is a folder.*delete it"),
    Situation("pipe for the memory", instead("build/scanned.sqlite", os.mkfifo), "index", "is a named pipe.*delete it"),
    Situation("locked memory", lock, "index", r"build/scanned\.sqlite: .*locked.*wait until the other",
              75),
    Situation("folder for the index", instead("build/index.parquet", Path.mkdir), "index", r"parquet.*move away"),
    Situation("file for build", instead("build", write("")), "index", r"build.*move away what is in its place"),
    Situation("file for build, check", instead("build", write("")), CHECK, r"build.*move away what is in its place"),
    *(Situation(f"{name} index, {command}", instead("build/index.parquet", make), command, says)
      for name, make, says in (
          ("truncated", write(b"PAR1"), r"build/index\.parquet: not an index"),
          ("other", cut, r"build/index\.parquet: not an index"),
          ("folder for the", Path.mkdir, r"build/index\.parquet: is a folder"),
          ("pipe for the", os.mkfifo, r"build/index\.parquet: is a named pipe"))
      for command in ("validate", "prepare", ACCEPT)),
    Situation("truncated index, diff", instead("build/index.parquet", write(b"PAR1")), DIFF, "not an index"),
    Situation("diff of no revision", lambda: None, "data diff nowhere", "neither a file nor a git revision"),
    Situation("corrupt quarantine", instead("build/validation/quarantine.json", write("{")), "prepare",
              r"quarantine\.json: not valid JSON.*dvc repro --force validate"),
    Situation("corrupt findings", instead("build/validation/findings.json", write("[")), ACCEPT, "not valid JSON"),
    Situation("findings without a hash", instead("build/validation/findings.json", write("{}")), ACCEPT,
              "of another index; run `dvc repro validate`"),
    *(Situation(f"accepted.json {content}, {command}", instead("data/tiny/accepted.json", write(content)), command,
                r"accepted\.json: not an accepted version .*`dpgan data accept`")
      for content in ("{", "[1]", '{"pairs": 3}', '{"pairs": {}, "shares": {"train": {"sky": "x"}}}')
      for command in ("validate", CHECK)),
    Situation("pipe for accepted.json", instead("data/tiny/accepted.json", os.mkfifo), CHECK, "is a named pipe"),
    Situation("folder for params.yaml", instead("params.yaml", Path.mkdir), "index", r"params\.yaml: is a folder"),
    Situation("pipe for params.yaml", instead("params.yaml", os.mkfifo), "index", r"params\.yaml: is a named pipe"),
    Situation("a key twice in params.yaml", instead("params.yaml", write("dataset: tiny\nraw: a\nraw: b\n")),
              "index", r"params\.yaml: key 'raw' is on line 2 and on line 3; delete one"),
    Situation("a key twice in the card", instead("data/tiny/dataset.yaml", write(CARD.replace("7,", "7, id: 8,"))),
              "index", r"dataset\.yaml: key 'id' is on line 12 and on line 12"),
    *(Situation(f"{more}, {command}", params(more), command, says, 1 if "check" in command else 2)
      for more, says in (
          ("run: {workers: 4}", r"2 of 3 training pairs are held out .*set run\.workers to 2"),
          ("train: {batch: 1}", r"train\.batch 1 is less than run\.workers 2"),
          ("train: {crop: [32, 96]}", r"train\.crop \[32, 96\]: .* within"),
          ("evaluate: {resolutions: [0.25]}", r"evaluate\.resolutions: 0\.25 x .*leave it out"),
          ("judge: {size: [16, 16]}", r"judge\.size \[16, 16\]: height and width must be 32 at least"))
      for command in ("index", "validate", "judge", "train", CHECK)),
    *(Situation(f"one validation pair, {command}", one_to_score, command, "validation split has 1 photo; .*add photos",
                code) for command, code in (("index", 2), (CHECK, 1))),
    *(Situation(f"nothing to score, {command}", nothing_to_score, command, "nothing to measure; mark classes", code)
      for command, code in (("validate", 2), (CHECK, 1))),
    Situation("too many workers, add", params("run: {workers: 9}"), "data add mine raw --no-copy",
              r"Suspicious: .*params\.yaml: train\.batch 8 is less than run\.workers 9.*Written", 0),
    Situation("prepared by something else", instead("build/prepared/meta.json", write("{")), "judge", "not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_situation(project: Path, situation: Situation, capfd: pytest.CaptureFixture[str]) -> None:
    kept = situation.change()  # a socket or a lock lasts as long
    capfd.readouterr()
    assert main(situation.command.split()) == situation.code
    said = " ".join("".join(capfd.readouterr()).split())
    assert re.search(situation.says, said), said
    if isinstance(kept, socket.socket | sqlite3.Connection):
        kept.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("command", ["index", "validate", "prepare", CHECK, ACCEPT])
def test_no_right_to_write(project: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in ("build", "data/tiny"):
        Path(folder).chmod(0o500)
    assert main(command.split()) == 2
    assert "give yourself the right to it" in "".join(capfd.readouterr())
    for folder in ("build", "data/tiny"):
        Path(folder).chmod(0o700)


def test_what_the_system_refuses_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As root no file is unreadable: what the system says then is raised here."""
    for number, remedy, code in (
        (errno.EACCES, "give yourself the right", 2),
        (errno.EROFS, "mount it writable", 2),
        (errno.ENOSPC, "make room", 2),
        (errno.EIO, "check the disk", os.EX_TEMPFAIL),  # a flow tries these again
        (errno.ESTALE, "check the disk", os.EX_TEMPFAIL),
    ):

        def refuse(self: Path, *_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number), str(self))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "mkdir", refuse)
            assert main(["index"]) == code
        error = capfd.readouterr().err
        assert error.startswith(f"error: build: {os.strerror(number)}; {remedy}")


def test_an_image_that_no_process_may_read_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = Image.open

    def refuse(path: Path, *rest: object) -> Image.Image:
        if str(path).endswith("train/1.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(Image, "open", refuse)
    assert main(["data", "check", "tiny"]) == 1
    assert "images/train/1.png: cannot be read: Permission denied" in " ".join(capfd.readouterr().out.split())


def test_two_links_to_one_folder_are_no_loop(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").touch()
    (tmp_path / "b").symlink_to("a")
    assert list(walk(tmp_path)) == ["a/1.png", "b/1.png"]
    (tmp_path / "a/up").symlink_to("..")
    with pytest.raises(UserError, match=r"a/up.*: a link loop"):
        list(walk(tmp_path))


def test_an_image_above_the_limit_is_named_for_its_size(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (960, 480)).save(PHOTO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    for which in ("tiny", "raw"):
        assert main(["data", "check", which]) == 1
        said = " ".join(capfd.readouterr().out.split())
        assert "images/train/1.png: is 960x480, 0 million pixels; 0 are the limit" in said
        assert "point -resize 50% FILE" in said
        assert "files can be decoded" not in said
    assert Image.MAX_IMAGE_PIXELS == 200_000


def test_a_git_revision_with_a_key_twice(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("dataset: tiny\nraw: raw\ndataset: tiny\n")
    for words in (
        ["init", "-q"],
        ["add", "params.yaml"],
        ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], check=True)
    Path("params.yaml").write_text("dataset: tiny\nraw: raw\n")
    assert main(["data", "diff", "HEAD"]) == 2
    assert "params.yaml of HEAD: key 'dataset' is on line 1 and on line 3" in capfd.readouterr().err


def test_images_of_one_pixel_are_named_for_their_size(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in Path("raw").rglob("*.png"):
        Image.new("RGB" if "images" in str(path) else "L", (1, 1)).save(path)
    assert main(["data", "check", "raw"]) == 2
    assert re.search("raw: the images are .*1x1", capfd.readouterr().err)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_folder_of_broken_links_is_named_for_them(
    project: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """As git-annex and a pruned cache leave it."""
    for path in Path("raw", kind).rglob("*.png"):
        path.unlink()
        path.symlink_to("../annex/x")
    assert main(["data", "check", "tiny"]) == 1
    assert main(["data", "check", "raw"]) == 2
    assert re.search(rf"{kind}/.*\.png:? is a broken link: nothing is at ", capfd.readouterr().err)

"""dpgan.evaluation.folder: images of anybody find their label maps, or one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpgan.errors import UserError
from dpgan.evaluation.folder import read_images

IDS = ["val/bonn/a_1", "val/bonn/a_1_2", "val/ulm/b"]
SIZE = (4, 6)


def write(folder: Path, **colors: int) -> Path:
    for name, value in colors.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (value, value, value)).save(folder / f"{name}.png")
    return folder


def read(folder: Path) -> list[int]:
    images = read_images(folder, IDS, SIZE)
    assert images.shape == (3, *SIZE, 3)
    assert images.dtype == np.uint8
    return [int(image[0, 0, 0]) for image in images]


def test_by_name_in_the_order_of_the_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(write(tmp_path, b=30, a_1=10, a_1_2=20)) == [10, 20, 30]
    assert capsys.readouterr().out == ""


def test_what_a_code_adds_to_the_names_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, **{"x/a_1_fake": 10, "a_1_2_fake": 20, "b-0": 30, "bonn": 40})
    (folder / "log.txt").write_text("no image")
    assert read(folder) == [10, 20, 30]
    assert "1 images belong to no validation label map and are left out" in capsys.readouterr().out


def test_a_label_map_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 images, and none for 1 of the 3 validation label maps: val/ulm/b; the "):
        read(write(tmp_path, a_1=1, a_1_2=2))


def test_two_images_of_one_label_map(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 label maps have several images; val/ulm/b has b_0\.png, b_1\.png: leave"):
        read(write(tmp_path, a_1=1, a_1_2=2, b_0=3, b_1=4))


def test_another_size(tmp_path: Path) -> None:
    folder = write(tmp_path, a_1=1, a_1_2=2, b=3)
    Image.new("RGB", (8, 4)).save(folder / "b.png")
    with pytest.raises(UserError, match=r"b\.png: 4x8, and the prepared label maps are 4x6 .*: paint at that size"):
        read(folder)


def test_a_damaged_file(tmp_path: Path) -> None:
    folder = write(tmp_path, a_1=1, a_1_2=2, b=3)
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: .*; make it again"):
        read(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")


def test_label_maps_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val/bonn/a and val/ulm/a have one name"):
        read_images(tmp_path, ["val/bonn/a", "val/ulm/a"], SIZE)

"""dpgan.data.propose.names: lists of class names in the formats that tools and papers write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folders import IDS, simple

from dpgan.data.propose import propose
from dpgan.data.propose.formats import UnclearError
from dpgan.data.propose.names import read_names

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "sky\ntraffic light\n", [("sky", None, None), ("traffic light", None, None)]),
        ("labels.txt", "0: sky\n7: traffic light\n", [("sky", 0, None), ("traffic light", 7, None)]),
        (
            "label_colors.txt",
            "128 128 128 Sky\n64\t0 128\t\tCar\n",
            [("Sky", None, (128,) * 3), ("Car", None, (64, 0, 128))],
        ),
        (
            "class_dict.csv",
            'name,r,g,b\n"Sky",1,2,3\nCar,4,5,6\n',
            [("Sky", None, (1, 2, 3)), ("Car", None, (4, 5, 6))],
        ),
        ("labels.csv", "id,name\n0,sky\n1,car\n", [("sky", 0, None), ("car", 1, None)]),
        ("classes.json", '["sky", "car"]', [("sky", None, None), ("car", None, None)]),
        ("classes.json", '{"0": "sky", "7": "car"}', [("sky", 0, None), ("car", 7, None)]),
        ("classes.json", '{"sky": 0, "car": 7}', [("sky", 0, None), ("car", 7, None)]),
        (
            "labels.json",
            '{"labels": [{"name": "sky", "id": 1, "color": [1, 2, 3]}, {"name": "car", "id": 2, "color": "#ff0010"}]}',
            [("sky", 1, (1, 2, 3)), ("car", 2, (255, 0, 16))],
        ),
    ],
)
def test_lists_of_names(name: str, text: str, expected: list, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [reading.rows for reading in read_names(tmp_path, name)] == [expected]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("classes.txt", "sky\nsky\n", "'sky' stands there twice"),
        ("classes.txt", "0 sky\ncar\n", "line 1 begins with an id, line 2 does not"),
        ("classes.json", "[1", "cannot be read as json"),
    ],
)
def test_lists_that_contradict_themselves(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UnclearError, match=says):
        read_names(tmp_path, name)


@pytest.mark.parametrize(("lines", "first"), [(["void", "sky", "road"], 0), (["sky", "road"], 1)])
def test_names_without_ids_count_from_where_the_maps_do(lines: list[str], first: int, tmp_path: Path) -> None:
    simple(tmp_path, lambda label: np.searchsorted(IDS, label).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    rows = propose(tmp_path, "mine").card.classes[-len(lines) :]
    assert [(info.id, info.name) for info in rows] == list(enumerate(lines, start=first))

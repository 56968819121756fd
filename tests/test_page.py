"""dpgan.evaluation.page: one page that needs no network, with all that an evaluation found."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpgan.evaluation.page import ClassScore, Content, Curve, Painted, Score, Table, number, write_page

pytestmark = pytest.mark.filterwarnings("error")


def content(**changes: object) -> Content:
    pixels = np.zeros((32, 64, 3), np.uint8)
    scores = {
        "floor": {"fid_lite0": Score(227.2), "miou_trained": Score(26.6)},
        "best": {"fid_lite0": Score(104.512, 101.1, 108.3), "miou_trained": Score(46.5, 45.2, 47.9)},
        "ceiling": {"fid_lite0": Score(24.0), "miou_trained": Score(59.9)},
    }
    given: dict[str, object] = {
        "title": "toyscapes <b>&", "summary": "400 label maps", "identity": {"commit": "abc123"}, "scores": scores,
        "ours": "best",
        "classes": [
            ClassScore("road", (128, 64, 128), {"floor": 80.0, "best": 91.23, "ceiling": 95.0}),
            ClassScore("train", (0, 80, 100), {"floor": None, "best": None, "ceiling": 3.0}),
            ClassScore("car", (0, 0, 142), {"floor": 10.0, "best": 55.5, "ceiling": 70.0}),
        ],
        "curves": [Curve("loss/G_total", [(0, 9.0), (100, 5.0), (200, 7.0)], marked=100), Curve("empty", [(0, 1.0)])],
        "samples": [Painted("val/000001", {"label map": pixels, "real photo": pixels, "generated": pixels + 200})],
        "extremes": {"Worst by the judge": [Painted("val/000002, 12.3", {"generated": pixels})]},
        "tables": [Table("Objects", ["size", "FID"], [["large", "12.3"], ["small", "-"]], note="crops")],
    }  # fmt: skip
    return Content(**{**given, **changes})  # type: ignore[arg-type]


def page_of(path: Path, **changes: object) -> str:
    write_page(content(**changes), path)
    return path.read_text()


def test_everything_is_told(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html")
    assert "toyscapes &lt;b&gt;&amp;" in page
    assert "104.5" in page
    assert "[101.1, 108.3]" in page
    assert page.index(">road<") < page.index(">car<") < page.index(">train<"), "the best class first"
    for words in (
        "val/000001",
        "Worst by the judge",
        "val/000002, 12.3",
        "Objects",
        "crops",
        "abc123",
        "400 label maps",
    ):
        assert words in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_it_needs_no_network(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html")
    assert "http" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_pictures_are_those_given(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html")
    urls = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")) for url in urls]
    assert [image.shape for image in images] == [(32, 64, 3)] * 4
    assert images[0].max() == 0
    assert abs(int(images[2].mean()) - 200) <= 2


def test_a_curve_spans_its_box_and_marks_what_was_kept(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html")
    assert 'd="M0.0 0.0 L150.0 130.0 L300.0 65.0"' in page
    assert '<circle cx="150.0" cy="130.0"' in page
    assert "empty" not in page, "one point is no curve"


def test_little_is_enough(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html", classes=(), curves=(), samples=(), extremes={}, tables=())
    for title in ("IoU by class", "Samples", "Training", "Objects"):
        assert title not in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123.4"), (12345.6, "12346"), (-3.21, "-3.21"),
     (float("nan"), "-")],
)  # fmt: skip
def test_digits(value: float, text: str) -> None:
    assert number(value) == text

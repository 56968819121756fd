"""dpgan.data.report: one page that needs no network and holds every finding; what other stages read."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data import report
from dpgan.data.facts import summary
from dpgan.data.index import scan
from dpgan.data.report import SAMPLES, SHOWN, percent, write_report
from dpgan.data.validation import validate
from dpgan.labels import Card

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw", train=10, val=4)


def page_of(raw: Path, card: Card, folder: Path, accepted: dict[str, Any] | None = None) -> str:
    frame = scan(card, raw, workers=1)
    write_report(validate(frame, card, accepted), frame, card, raw, folder, accepted)
    return (folder / "report.html").read_text()


def pictures(page: str) -> list[Image.Image]:
    """Every inline image, decoded."""
    urls = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]


def test_a_clean_set(raw: Path, tmp_path: Path) -> None:
    page = page_of(raw, make_card(), tmp_path / "out")
    assert "Usable: every expectation is met." in page
    assert "Against the accepted version" not in page
    assert len(pictures(page)) == 2 * (4 + 4)
    assert json.loads((tmp_path / "out/quarantine.json").read_text()) == {}
    assert page == page_of(raw, make_card(), tmp_path / "again")  # of the same data, the same page


def test_it_needs_no_network_and_escapes_what_it_tells(raw: Path, tmp_path: Path) -> None:
    page = page_of(raw, make_card(title="Tiny <b>&"), tmp_path / "out")
    assert "Tiny &lt;b&gt;&amp;" in page
    assert "http" not in page
    assert not re.search(r'(src|href)="(?!data:|findings\.json|quarantine\.json)', page)


def test_findings_and_quarantine_are_told_whole(raw: Path, tmp_path: Path) -> None:
    (raw / "images/train/1.png").write_bytes(b"x")
    page = page_of(raw, make_card(max_faulty=0.1), tmp_path / "out")
    reason = "not met: files can be decoded: images/train/1.png: cannot be decoded: not an image file"
    assert json.loads((tmp_path / "out/quarantine.json").read_text()) == {"train/1": reason}
    content = json.loads((tmp_path / "out/findings.json").read_text())
    assert content["pairs"] == {"train": 10, "val": 4}
    assert content["stops"] == []
    (finding,) = content["findings"]
    assert (finding["severity"], finding["count"], finding["samples"]) == ("error", 1, ["train/1"])
    assert finding["remedy"] in page.replace("<code>", "`").replace("</code>", "`")
    assert "Usable without 1 faulty pair, with\nno warnings." in page
    assert f"train/1: {reason}" in page


def test_what_stops_the_pipeline_is_told_first(raw: Path, tmp_path: Path) -> None:
    (raw / "images/train/1.png").write_bytes(b"x")
    page = page_of(raw, make_card(), tmp_path / "out")
    assert page.index("the pipeline stops here") < page.index("1 of 10 pairs are faulty") < page.index("Findings")


def test_a_twin_is_shown_beside_the_photo(raw: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 48), (200, 30, 30)).save(raw / "images/test/2.png")
    Image.new("RGB", (96, 48), (200, 30, 30)).save(raw / "images/train/7.png")
    first, second, *_ = pictures(page_of(raw, make_card(), tmp_path / "out"))
    for shown in (first, second):
        assert np.abs(np.array(shown.convert("RGB")).astype(int) - (200, 30, 30)).max() < 8


def test_unknown_ids_shine(raw: Path, tmp_path: Path) -> None:
    ids = np.array(Image.open(raw / "labels/train/1.png"))
    ids[10:20, :50] = 99
    Image.fromarray(ids).save(raw / "labels/train/1.png")
    _, label, *_ = pictures(page_of(raw, make_card(), tmp_path / "out"))
    assert (np.array(label.convert("RGB")) == (255, 0, 255)).all(axis=-1).sum() == 500


def test_a_map_without_ids_is_shown_as_it_is_stored(raw: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 48), (1, 200, 3)).save(raw / "labels/train/1.png")
    page = page_of(raw, make_card(), tmp_path / "out")
    assert np.unique(np.array(pictures(page)[1].convert("RGB")).reshape(-1, 3), axis=0).tolist() == [[1, 200, 3]]


def test_pictures_are_bounded(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):  # an unknown id, and a single one: two findings
        Image.fromarray(np.full((48, 96), 3, np.uint8)).save(raw / f"labels/train/{i}.png")
    page = page_of(raw, make_card(), tmp_path / "out")
    samples = 2 * SAMPLES  # of val
    assert len(pictures(page)) == 2 * (SHOWN + SHOWN) + samples
    assert page.count("<li>labels/train/9.png") == 2  # listed, though not pictured
    monkeypatch.setattr(report, "PICTURED", SHOWN + 1)
    assert len(pictures(page_of(raw, make_card(), tmp_path / "out"))) == 2 * (SHOWN + 1) + samples


def test_drift_against_the_accepted_version(raw: Path, tmp_path: Path) -> None:
    card = make_card()
    accepted = summary(scan(card, raw, workers=1), card)
    accepted["shares"]["train"] = {"sky": 0.5, "road": 0.2, "fence": 0.3}
    page = page_of(raw, card, tmp_path / "out", accepted)
    section = page[page.index("Against the accepted version") : page.index("<h2>Samples")]
    assert "<td>fence</td>" in section
    assert "-30.00 points" in section
    assert "the same class shares" in section  # of val


def test_classes_that_occur_nowhere_are_named(raw: Path, tmp_path: Path) -> None:
    classes = [c.model_dump() for c in make_card().classes]
    classes.append({"id": 8, "name": "unicorn", "color": (1, 2, 3), "evaluate": True})
    page = page_of(raw, make_card(classes=classes), tmp_path / "out")
    assert "Classes that occur nowhere: unicorn." in page


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (4e-7, "<0.001%"), (4.13e-5, "0.0041%"), (0.00119, "0.12%"), (0.3166, "31.7%")]
)
def test_percent_has_two_digits_that_count(share: float, text: str) -> None:
    assert percent(share) == text

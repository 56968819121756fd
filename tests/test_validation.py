"""dpgan.data.validation: quarantine up to the card's limit, and one clear error beyond it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_pairs import make_card, make_raw

from dpgan.data.index import scan
from dpgan.data.validation import Report, raise_on_errors, validate
from dpgan.errors import UserError
from dpgan.labels import Card

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw", train=10, val=4)


def held(raw: Path, **changes: object) -> Report:
    card = make_card(**changes)
    return validate(scan(card, raw, workers=1), card)


def break_pairs(raw: Path, *names: str) -> None:
    for name in names:
        (raw / f"images/{name}.png").write_bytes(b"x")


def test_clean_pairs_have_no_findings_and_nothing_is_printed(
    raw: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = held(raw)
    assert report == Report([], {}, [])
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert caplog.records == []
    raise_on_errors(report)


def test_faulty_pairs_are_left_out_up_to_the_limit(raw: Path) -> None:
    break_pairs(raw, "train/3", "train/5")
    (raw / "labels/train/5.png").unlink()
    report = held(raw, max_faulty=0.2)
    broken = "not met: files can be decoded: images/train/{}.png: cannot be decoded: not an image file"
    assert report.quarantined == {
        "train/3": broken.format(3),
        "train/5": "not met: files are paired: images/train/5.png: has no label map (expected labels/train/5.png); "
        + broken.format(5),
    }
    assert report.stops == []
    raise_on_errors(report)


def test_more_faulty_pairs_than_the_limit_stop_it(raw: Path) -> None:
    break_pairs(raw, *(f"train/{i}" for i in range(7)))
    (raw / "labels/test/0.png").unlink()
    report = held(raw, max_faulty=0.25)
    assert len(report.quarantined) == 8
    with pytest.raises(UserError) as error:
        raise_on_errors(report)
    lines = str(error.value).splitlines()
    assert lines[0] == "the raw pairs cannot be trained on"
    assert lines[1] == (
        "train (train): 7 of 10 pairs are faulty, and 2 may be left out "
        "(`max_faulty: 0.25` in data/tiny/dataset.yaml); mend them, or raise the limit"
    )
    assert not lines[2].startswith("val")  # 1 of 4 is within the limit
    assert "error: not met: files can be decoded (7x). A truncated or corrupt file" in str(error.value)
    assert "    images/train/4.png: cannot be decoded: not an image file" in lines
    assert "    and 2 more" in lines
    assert "Copy the file from the source again" in str(error.value)


def test_the_limit_is_a_share_of_the_split(raw: Path) -> None:
    break_pairs(raw, "test/0")
    assert held(raw, max_faulty=0.25).stops == []
    assert held(raw, max_faulty=0.24).stops[0].startswith("val (test): 1 of 4 pairs are faulty, and 0 may be left out")


def test_splits_are_held_to_it_without_the_quarantined_pairs(raw: Path) -> None:
    break_pairs(raw, "test/0")
    report = held(raw, max_faulty=0.25, min_pairs=4)
    assert report.stops == ["not met: a split has enough pairs: val (test): 3 pairs, 4 at least"]
    with pytest.raises(UserError, match="Add pairs; or mend `splits`"):
        raise_on_errors(report)


def test_a_class_that_only_a_quarantined_pair_had(raw: Path) -> None:
    for path in sorted((raw / "labels/train").iterdir())[1:]:
        Image.fromarray(np.where(np.array(Image.open(path)) == 7, 0, Image.open(path)).astype(np.uint8)).save(path)
    assert held(raw).findings == []  # train/0 has road
    break_pairs(raw, "train/0")
    report = held(raw, max_faulty=0.1)
    told = {finding.expectation: finding.details for finding in report.findings}
    assert told["training has every class of validation"] == ["val (test): road (4 pairs, first labels/test/0.png)"]


def test_nothing_is_left_out_where_it_stops(raw: Path) -> None:
    """Beyond the limit the splits are told as they are: not as empty for lack of what was wrong."""
    break_pairs(raw, *(f"train/{i}" for i in range(10)))
    report = held(raw)
    assert [finding.expectation for finding in report.findings] == ["files can be decoded"]


def test_warnings_quarantine_nothing(raw: Path) -> None:
    Image.fromarray(np.full((48, 96), 7, np.uint8)).save(raw / "labels/train/2.png")
    report = held(raw)
    assert [(f.expectation, f.severity, f.samples) for f in report.of("warning")] == [
        ("label maps hold several classes", "warning", ["train/2"])
    ]
    assert report.of("error") == []
    assert report.quarantined == {}
    raise_on_errors(report)


def test_findings_come_in_the_order_of_the_contract(raw: Path) -> None:
    break_pairs(raw, "train/1")
    (raw / "labels/train/2.png").unlink()
    Image.fromarray(np.full((48, 96), 7, np.uint8)).save(raw / "labels/train/4.png")
    names = [finding.expectation for finding in held(raw).findings]
    assert names == ["files are paired", "files can be decoded", "label maps hold several classes"]


def test_data_docs_are_written_and_lead_to_every_page(raw: Path, tmp_path: Path) -> None:
    card: Card = make_card(max_faulty=0.1)
    break_pairs(raw, "train/1")
    validate(scan(card, raw, workers=1), card, docs=tmp_path / "docs")
    index = (tmp_path / "docs/index.html").read_text()
    pages = [path.relative_to(tmp_path / "docs").as_posix() for path in (tmp_path / "docs").rglob("*.html")]
    results = [page for page in pages if page.startswith("validations/")]
    assert len(results) == 2
    assert all(page in index for page in pages if page != "index.html")
    text = "".join((tmp_path / "docs" / page).read_text() for page in pages)
    assert "images/train/1.png: cannot be decoded: not an image file" in text
    assert "Copy the file from the source again" in text  # the suite's page gives reasons and remedies
    assert str(tmp_path) not in text

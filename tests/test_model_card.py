"""The model card: all that a reader must find, in Markdown that MLflow keeps whole."""

from __future__ import annotations

from conftest import tiny_card
from registry_project import CEILING, FLOOR, GOOD, evaluation

from dpgan.registry.gate import Verdict
from dpgan.registry.model_card import LONGEST, model_card

FACTS = {"dataset_hash": "d1", "data_hash": "d2", "git.commit": "c0ffee", "git.dirty": "true"}


def test_it_says_what_a_reader_must_know() -> None:
    text = model_card("dpgan-toyscapes", 7, tiny_card(), GOOD, FLOOR, CEILING, FACTS, Verdict(True, ("it's better",)))
    for words in (
        "**The gate's verdict: passed**\n- it's better\n",
        "Toyscapes, procedural street scenes at 32x64 pixels, for 35 classes",
        "- Licence: Apache-2.0 (rendered by dpgan, no photo involved)\n",
        "`dataset_hash` d1, `data_hash` d2",
        "commit c0ffee, with changes",
        "On 40 validation label maps",
        "## Intended use", "## Limits", "## Misuse",
        "bus (20.0 of 70.0), road (90.0 of 95.0)",
        'mlflow.pyfunc.load_model("models:/dpgan-toyscapes/7")',
    ):  # fmt: skip
        assert words in text
    assert "None" not in text
    assert "&" not in text, "it is no HTML"


def test_its_table_is_one_that_markdown_knows() -> None:
    lines = model_card("m", 1, tiny_card(), GOOD, FLOOR, CEILING, FACTS, Verdict(True, ())).splitlines()
    start = lines.index("| | fid_lite0 | kid_lite0 | miou_trained | accuracy_trained |")
    rows = lines[start : start + 5]
    assert {row.count("|") for row in rows} == {6}
    assert rows[2].startswith("| floor: each class in its mean colour | 200.0 | 400.0 | 10.0 |")
    assert rows[3].startswith("| **this model** | 100.0 (")
    assert rows[4] == "| ceiling: real photos | 20.0 | 1.0 | 60.0 | 95.0 |"
    assert lines[start + 5] == ""


def test_what_was_not_read_in_real_photos_is_no_weakness() -> None:
    scores = evaluation(classes={"road": 90.0, "train": 0.0})
    real = {**CEILING, "iou_trained/train": 0.0}
    text = model_card("m", 1, tiny_card(), scores, FLOOR, real, FACTS, Verdict(False, ("no",)))
    assert "train (" not in text
    assert "**The gate's verdict: refused**" in text


def test_it_fits_into_mlflow() -> None:
    card = tiny_card().model_copy(update={"title": "A very long title. " * 400})
    text = model_card("m", 1, card, GOOD, FLOOR, CEILING, FACTS, Verdict(True, ()))
    assert len(text) == LONGEST
    assert text.endswith("…")

"""dpgan.labels and dpgan.settings: cards, id tables, and errors that say what to mend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from dpgan.errors import UserError
from dpgan.labels import Card, known_datasets, load_card
from dpgan.settings import load_yaml, nearest, parse

DATA = Path(__file__).parents[1] / "data"


def content(name: str = "camvid") -> dict:
    return yaml.safe_load((DATA / name / "dataset.yaml").read_text())


def test_camvid_sky_is_a_class_and_void_is_11() -> None:
    card = load_card("camvid", DATA)
    assert card.classes[0].name == "sky"
    assert card.id_table[0] == 0
    assert not card.void[0]
    assert 0 in card.evaluated
    assert np.flatnonzero(card.void).tolist() == [card.id_table[11]] == [11]
    assert card.evaluated.tolist() == list(range(11))
    assert card.splits["val"] == "test"


def test_toyscapes_scores_the_19_classes_of_cityscapes() -> None:
    card = load_card("toyscapes", DATA)
    assert len(card.evaluated) == 19
    assert not card.void[card.evaluated].any()
    assert card.classes[card.id_table[255]].name == "license plate"
    assert card.id_table[34] == -1


@pytest.mark.parametrize("name", known_datasets(DATA))
def test_cards_are_consistent(name: str) -> None:
    card = load_card(name, DATA)
    ids = [info.id for info in card.classes]
    np.testing.assert_array_equal(card.id_table[ids], np.arange(card.num_classes))
    assert (card.id_table >= 0).sum() == card.num_classes
    assert card.palette.shape == (card.num_classes, 3)


def test_colorize_takes_class_indices() -> None:
    card = load_card("toyscapes", DATA)
    labels = np.array([[[0, 7], [34, 34]]], dtype=np.uint8)
    np.testing.assert_array_equal(card.colorize(labels), [[[(0, 0, 0), (128, 64, 128)], [(0, 0, 142), (0, 0, 142)]]])


def test_digest_follows_the_content() -> None:
    card = load_card("camvid", DATA)
    assert card.digest == Card.model_validate(content()).digest
    assert card.digest != Card.model_validate({**content(), "size": [128, 160]}).digest


def first_class(**changes: object) -> dict:
    card = content()
    card["classes"][0].update(changes)
    return card


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (first_class(id=3), "classes: id 3 stands twice"),
        (first_class(id=256), "classes.0.id: Input should be less than or equal to 255"),
        (first_class(id="sky"), "classes.0.id: Input should be a valid integer.*given: 'sky'"),
        (first_class(color=[1, 2]), "classes.0.color"),
        ({**content(), "size": [100, 128]}, "size: 100 is not a multiple of 32"),
        ({**content(), "size": [96]}, "size"),
        ({**content(), "splits": {"train": "train"}}, "splits: both `train` and `val`"),
        ({**content(), "licens": "?"}, "unknown key 'licens'; did you mean 'licence'"),
        ({**content(), "layout": {"image": "a", "lable": "b"}}, "layout.lable'; did you mean 'label'"),
        ({key: value for key, value in content().items() if key != "preset"}, "missing key 'preset'"),
        (first_class(name="car"), "classes: two are called 'car'"),
        (first_class(evaluate=True, void=True), "classes: sky is both `evaluate` and `void`"),
        (first_class(color=[0, 0, 256]), "classes.0.color.2: Input should be less than or equal to 255"),
        ({**first_class(color=[0, 0, 0]), "encoding": "colors"}, "void has the color .0, 0, 0. of another class"),
        ({**content(), "select": {"any": ["sky"], "none": ["buildin"]}}, "no class is called 'buildin'.*'building'"),
        ({**content(), "layout": {"image": "{split}/a", "label": "{split}/{id}"}}, "layout.image: .* lacks {id}"),
        ({**content(), "layout": {"image": "a/{id}", "label": "{split}/{id}"}}, "layout.image: 'a/{id}' lacks {split}"),
        (
            {**content(), "layout": {"image": "a/{id}", "label": "b/{id}", "ids": "all.txt"}},
            "layout.ids: 'all.txt' lacks {split}",
        ),
        ({**content(), "classes": [{**c, "evaluate": False} for c in content()["classes"]]}, "evaluate: true"),
    ],
)  # fmt: skip
def test_mistakes_in_a_card(card: dict, message: str) -> None:
    path = Path("data/camvid/dataset.yaml")
    with pytest.raises(UserError, match=message) as error:
        parse(Card, card, path)
    assert all(line.startswith(str(path)) for line in str(error.value).splitlines())


def test_lists_of_ids_stand_for_the_split_in_paths() -> None:
    layout = {"image": "photos/{id}.jpg", "label": "masks/{id}.png", "ids": "{split}.txt"}
    assert Card.model_validate({**content(), "layout": layout}).layout.ids == "{split}.txt"


@pytest.mark.parametrize(
    ("select", "present", "selected"),
    [
        (None, [3], True),
        ({"any": ["sky", "road"]}, [3, 8], True),
        ({"any": ["sky", "road"]}, [1, 8], False),
        ({"none": ["car"]}, [1], True),
        ({"none": ["car"]}, [1, 8], False),
        ({"any": ["road"], "none": ["car"]}, [3, 8], False),
        ({"any": ["road"], "none": ["car"]}, [3, 200], True),
    ],
)
def test_selection_by_classes(select: dict | None, present: list[int], selected: bool) -> None:
    card = Card.model_validate({**content(), "select": select})
    histogram = np.zeros(256, dtype=np.int64)
    histogram[present] = 7
    assert card.selects(histogram) is selected
    assert card.selects(histogram.tolist()) is selected  # as the index holds it


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown dataset 'camvit'; did you mean 'camvid'"):
        load_card("camvit", DATA)


def test_a_card_is_named_as_its_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset.yaml").write_text(yaml.safe_dump(content()))
    with pytest.raises(UserError, match=r"unknown name 'camvid'.*known: other"):
        load_card("other", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- a\n", "expected `key: value` lines, found list"), ("", "found NoneType")],
)
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_yaml(path)
    assert str(path) in str(error.value)


def test_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_yaml(tmp_path / "params.yaml")


def test_nearest() -> None:
    assert nearest("trian", ["train", "val"]) == "train"
    assert nearest("zzz", ["train", "val"]) is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_card("camvid", DATA).title = "another"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a' is on line 1 and on line 3; delete one of them"),
        ("run:\n  workers: 1\n  'workers': 2\n", "key 'workers' is on line 2 and on line 3"),
        ("rows:\n- {id: 1, id: 2}\n", "key 'id' is on line 2 and on line 2"),
        ("1: a\n1: b\n", "key 1 is on line 1 and on line 2"),
    ],
)
def test_a_key_twice_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=f"params.yaml: {says}"):
        load_yaml(tmp_path / "params.yaml")


def test_merged_rows_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfa: &row {x: 1, y: 2}\nb: {<<: *row, x: 3}\nc: {x: 4}\n")
    assert load_yaml(tmp_path / "params.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4}}

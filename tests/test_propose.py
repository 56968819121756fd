"""dpgan.data.propose: common layouts, encodings and lists of names become cards; what looks wrong is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan.data.layout import find_pairs
from dpgan.data.propose import Proposal, fitting, propose, propose_size
from dpgan.data.propose.arrange import take_apart
from dpgan.data.propose.classes import voc_color
from dpgan.data.propose.names import read_names
from dpgan.errors import UserError
from dpgan.labels import known_datasets, load_card

pytestmark = pytest.mark.filterwarnings("error")

IDS = [0, 7, 255]
COLORS = {0: (70, 130, 180), 7: (128, 64, 128), 255: (0, 0, 0)}


def ids_map(index: int, size: tuple[int, int] = (48, 96)) -> np.ndarray:
    """uint8 [H, W]: sky over road over a strip of void; no two alike."""
    label = np.zeros(size, np.uint8)
    label[8 + index :] = 7
    label[-4:] = 255
    return label


def as_colors(label: np.ndarray) -> np.ndarray:
    return np.array([COLORS[i] for i in IDS], np.uint8)[np.searchsorted(IDS, label)]


def as_palette(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label)
    image.putpalette([channel for i in range(256) for channel in COLORS.get(i, (1, 2, 3))])
    return image


def make(
    root: Path,
    image: str,
    label: str,
    splits: tuple[str, str] = ("train", "val"),
    counts: tuple[int, int] = (10, 8),
    write: Callable[[np.ndarray], np.ndarray | Image.Image] = lambda label: label,
) -> Path:
    """A folder of noise photos and label maps, named by two patterns."""
    rng = np.random.default_rng(0)
    for number in range(sum(counts)):
        where = {"split": splits[number >= counts[0]], "id": f"{number:03d}"}
        content = write(ids_map(number))
        label_file = content if isinstance(content, Image.Image) else Image.fromarray(content)
        photo = Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8))
        for pattern, picture in ((image, photo), (label, label_file)):
            path = root / pattern.format(**where)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return root


def simple(root: Path, write: Callable[[np.ndarray], np.ndarray | Image.Image] = lambda label: label) -> Path:
    return make(root, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", write=write)


def told(proposal: Proposal) -> str:
    return "\n".join([*proposal.found, *proposal.suspicious])


@pytest.mark.parametrize(
    ("path", "pattern", "split", "id_"),
    [
        ("images/train/1.jpg", "images/{split}/{id}.jpg", "train", "1"),
        ("train/images/1.jpg", "{split}/images/{id}.jpg", "train", "1"),
        ("trainannot/1.png", "{split}annot/{id}.png", "train", "1"),
        ("val_masks/mask_12.png", "{split}_masks/mask_{id}.png", "val", "12"),
        ("gtFine/val/bonn/b_1_gtFine_labelIds.png", "gtFine/{split}/{id}_gtFine_labelIds.png", "val", "bonn/b_1"),
        ("images/train2017/0001.jpg", "images/{split}/{id}.jpg", "train2017", "0001"),
        ("Images/Validation/a-b.c.JPG", "Images/{split}/{id}.JPG", "Validation", "a-b.c"),
        ("train_007_mask.png", "{split}_{id}_mask.png", "train", "007"),
        ("city/0001_mask.png", "{id}_mask.png", "", "city/0001"),
        ("images/trainval/1.jpg", "images/{split}/{id}.jpg", "trainval", "1"),
        ("trainstation.jpg", "{id}.jpg", "", "trainstation"),
        ("constrained/mask.png", "{id}.png", "", "constrained/mask"),
    ],
)
def test_take_apart(path: str, pattern: str, split: str, id_: str) -> None:
    assert take_apart(path) == (pattern, split, id_)


@pytest.mark.parametrize(
    ("image", "label", "splits"),
    [
        ("images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "val")),
        ("{split}/images/{id}.jpg", "{split}/labels/{id}.png", ("training", "validation")),
        ("{split}/{id}.png", "{split}annot/{id}.png", ("train", "test")),
        ("photos/{split}/{id}_rgb.png", "gt/{split}/{id}_gt.png", ("train", "val")),
        ("rgb/{split}/img_{id}.png", "seg/{split}/mask_{id}.png", ("train", "val")),
        ("{split}/{id}.jpg", "{split}/{id}.png", ("train", "val")),
        ("{split}_{id}.png", "{split}_{id}_mask.png", ("train", "val")),
    ],
)
def test_layouts_with_a_split(image: str, label: str, splits: tuple[str, str], tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, image, label, splits), "mine")
    card = proposal.card
    assert (card.layout.image, card.layout.label, card.layout.ids) == (image, label, None)
    assert card.splits == dict(zip(("train", "val"), splits, strict=True))
    assert proposal.suspicious == []
    assert proposal.lists == {}
    pairs = find_pairs(card, tmp_path)
    assert [pair.split for pair in pairs] == ["train"] * 10 + ["val"] * 8
    assert not any(pair.missing for pair in pairs)


@pytest.mark.parametrize(
    ("image", "label"),
    [("{id}.jpg", "{id}_mask.png"), ("A/{id}.jpg", "B/{id}.png"), ("images/{id}.png", "masks/{id}.png")],
)
def test_a_folder_without_a_split_gets_the_same_lists_every_time(image: str, label: str, tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, image, label, counts=(40, 60)), "mine")
    assert (proposal.card.layout.image, proposal.card.layout.label) == (image, label)
    assert proposal.card.layout.ids == "splits/{split}.txt"
    train, val = proposal.lists["splits/train.txt"], proposal.lists["splits/val.txt"]
    assert (len(train), len(val)) == (90, 10)
    assert sorted([*train, *val]) == [f"{i:03d}" for i in range(100)]
    assert propose(tmp_path, "mine").lists == proposal.lists
    assert "There is no split: 10 of 100 pairs were drawn" in proposal.suspicious[0]


def test_a_single_split_folder_is_a_folder_without_a_split(tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, "train/images/{id}.png", "train/labels/{id}.png"), "mine")
    assert proposal.card.layout.image == "train/images/{id}.png"
    assert len(proposal.lists["splits/val.txt"]) == 8


def test_lists_in_the_folder_are_its_split(tmp_path: Path) -> None:
    make(tmp_path, "JPEGImages/{id}.jpg", "SegmentationClass/{id}.png")
    (tmp_path / "ImageSets").mkdir()
    for name, numbers in (("train", range(9)), ("val", range(9, 18)), ("trainval", range(18))):
        (tmp_path / f"ImageSets/{name}.txt").write_text("".join(f"{i:03d}\n" for i in numbers))
    proposal = propose(tmp_path, "mine")
    assert proposal.card.layout.ids == "ImageSets/{split}.txt"
    assert proposal.lists == {}
    assert [pair.split for pair in find_pairs(proposal.card, tmp_path)] == ["train"] * 9 + ["val"] * 9


def test_label_maps_in_one_folder_take_the_photos_split(tmp_path: Path) -> None:
    proposal = propose(make(tmp_path, "images/{split}/{id}.jpg", "labels/{id}.png"), "mine")
    assert proposal.lists["splits/val.txt"] == [f"{i:03d}" for i in range(10, 18)]
    assert proposal.suspicious == []


def test_test_is_left_alone_where_there_is_val(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "val"))
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("test", "test"))
    proposal = propose(tmp_path, "mine")
    assert proposal.card.splits == {"train": "train", "val": "val"}
    assert "test (18 pairs) is not used." in proposal.found


def test_photos_with_another_ending_are_told(tmp_path: Path) -> None:
    simple(tmp_path)
    for number in (3, 4):
        path = tmp_path / f"images/train/{number:03d}.jpg"
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    first = propose(tmp_path, "mine").suspicious[0]
    assert first.startswith(
        "Not .jpg as most are: 2 photos, images/train/003.png, images/train/004.png. Save them alike"
    )


def test_photos_without_any_label_map_are_no_split(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "test"), counts=(20, 8))
    shutil.rmtree(tmp_path / "labels/test")
    proposal = propose(tmp_path, "mine")
    assert "test holds no pair, and is not used." in proposal.found
    assert proposal.card.layout.image == "images/train/{id}.jpg"
    assert len(proposal.lists["splits/val.txt"]) == 8


@pytest.mark.parametrize("name", WRITERS)
def test_published_layouts_are_found_without_their_cards(name: str, tmp_path: Path) -> None:
    proposal = propose(WRITERS[name](tmp_path, Counts(9, 8), size=(32, 64)), "mine")
    card = load_card(name, ROOT / "data")
    assert proposal.card.layout.model_dump() == card.layout.model_dump() | (
        {key: getattr(card.layout, key).replace("ADE_", "") for key in ("image", "label")} if name == "ade20k" else {}
    )
    assert proposal.card.splits == card.splits


def classes(proposal: Proposal) -> list[tuple[int, str, tuple[int, int, int], str]]:
    use = {(True, False): "scored", (False, True): "void", (False, False): "learnt"}
    return [(c.id, c.name, c.color, use[c.evaluate, c.void]) for c in proposal.card.classes]


def test_ids(tmp_path: Path) -> None:
    proposal = propose(simple(tmp_path), "mine")
    assert proposal.card.encoding == "ids"
    assert classes(proposal) == [
        (0, "class_0", voc_color(1), "scored"),
        (7, "class_7", voc_color(8), "scored"),
        (255, "void", (0, 0, 0), "void"),
    ]
    assert "255 means don't care" in told(proposal)


def test_palette(tmp_path: Path) -> None:
    proposal = propose(simple(tmp_path, as_palette), "mine")
    assert proposal.card.encoding == "palette"
    assert [row[2] for row in classes(proposal)] == [COLORS[i] for i in IDS]


def test_colors_with_names(tmp_path: Path) -> None:
    simple(tmp_path, as_colors)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nroad:128,64,128::\nunlabeled:0,0,0::\n")
    proposal = propose(tmp_path, "mine")
    assert proposal.card.encoding == "colors"
    assert classes(proposal) == [
        (0, "road", COLORS[7], "scored"),
        (1, "unlabeled", COLORS[255], "void"),
        (2, "color_4682b4", COLORS[0], "scored"),
    ]
    assert "labelmap.txt has no name for color_4682b4" in proposal.suspicious[0]


def test_ids_saved_as_rgb(tmp_path: Path) -> None:
    proposal = propose(simple(tmp_path, lambda label: np.stack([label] * 3, axis=-1)), "mine")
    assert proposal.card.encoding == "colors"
    assert classes(proposal)[1:] == [(7, "class_7", (7, 7, 7), "scored"), (255, "void", (255, 255, 255), "void")]


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
        ("classes.txt", "sky\nsky\n", []),
        ("classes.txt", "sky 300\ncar 7\n", [("sky 300", None, None), ("car", 7, None)][:0]),
        ("classes.json", "[1", []),
    ],
)
def test_lists_of_names(name: str, text: str, expected: list, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path / name) == expected


@pytest.mark.parametrize(("lines", "first"), [(["void", "sky", "road"], 0), (["sky", "road"], 1)])
def test_names_without_ids_count_from_where_the_maps_do(lines: list[str], first: int, tmp_path: Path) -> None:
    simple(tmp_path, lambda label: np.searchsorted(IDS, label).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    rows = classes(propose(tmp_path, "mine"))
    assert [(row[0], row[1]) for row in rows[-len(lines) :]] == list(enumerate(lines, start=first))


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        ([(480, 360)], (192, 256)),
        ([(2048, 1024)], (256, 512)),
        ([(1920, 1080)], (256, 448)),
        ([(96, 48)], (32, 64)),
        ([(20, 20)], (32, 32)),
        ([(100, 100), (200, 100), (400, 100)], (96, 192)),
        ([(333, 777)], (224, 96)),
    ],
)
def test_sizes(photos: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert propose_size(photos) == expected


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda raw: (raw / "labels/train/003.png").unlink(), "Without a label map: 1 photo, images/train/003.jpg."),
        (lambda raw: (raw / "images/train/004.jpg").unlink(), "Without a photo: 1 label map, labels/train/004.png."),
        (lambda raw: (raw / "labels/train/003.png").write_bytes(b""), "Not an image: labels/train/003.png."),
        (lambda raw: (raw / "images/train/003.jpg").write_bytes(b"x"), "Not an image: images/train/003.jpg."),
        (
            lambda raw: rewrite(raw / "labels/train/003.png", lambda x: np.stack([x] * 3, -1)),
            "17 of mode L, 1 of another: labels/train/003.png (RGB).",
        ),
        (
            lambda raw: rewrite(raw / "labels/train/003.png", lambda x: x[:40]),
            "Not of their photo's size: 1 label map: images/train/003.jpg 96x48, labels/train/003.png 96x40.",
        ),
        (
            lambda raw: rewrite(raw / "labels/train/003.png", lambda x: np.where(np.arange(96) < 3, 9, x)),
            "In one map only: class_9.",
        ),
        (
            lambda raw: [rewrite(raw / f"{kind}/train/003.{end}", lambda x: x[:, :48].copy())
                         for kind, end in (("images", "jpg"), ("labels", "png"))],
            "Photos have shapes from 1.00 to 2.00 (width / height)",
        ),
        (
            lambda raw: [(raw / f"{kind}/val/{i:03d}.{end}").unlink() for i in range(10, 15)
                         for kind, end in (("images", "jpg"), ("labels", "png"))],
            "Only 3 pairs for validation; a split needs 8 at least",
        ),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_told_and_nothing_else(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    assert propose(simple(tmp_path), "mine").suspicious == []
    spoil(tmp_path)
    suspicious = propose(tmp_path, "mine").suspicious
    assert len(suspicious) == 1
    assert says in suspicious[0]


def smooth(picture: Image.Image) -> Image.Image:
    turned = picture.rotate(10, Image.Resampling.BILINEAR)  # so that edges run across the rows
    return turned.resize((61, 31), Image.Resampling.BILINEAR).resize((96, 48), Image.Resampling.BILINEAR)


def test_interpolated_ids(tmp_path: Path) -> None:
    proposal = propose(simple(tmp_path, lambda label: smooth(Image.fromarray(label))), "mine")
    assert "Ramps between ids in 18 of 18 label maps" in proposal.suspicious[0]


def test_traces_of_smoothing_in_colors(tmp_path: Path) -> None:
    def with_a_trace(label: np.ndarray) -> np.ndarray:
        colors = as_colors(label)
        colors[5, 5] = (99, 97, 154)
        return colors

    simple(tmp_path, as_colors)
    rewrite(tmp_path / "labels/train/003.png", lambda _: with_a_trace(ids_map(3)))
    proposal = propose(tmp_path, "mine")
    assert "1 colour with hardly a pixel (0.00% in all): (99, 97, 154)." in proposal.suspicious[0]
    assert len(proposal.card.classes) == 3


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda label: label.astype(np.uint16), "16-bit: save ids with 8 bits"),
        (lambda label: Image.fromarray(label).convert("1"), "1-bit, two values"),
        (lambda label: Image.fromarray(as_colors(label)).convert("RGBA"), "alpha channel: save them without it"),
        (lambda label: np.full_like(label, 7), r"hold 1 class \(class_7\); two at least"),
        (lambda label: smooth(Image.fromarray(as_colors(label))), "were they saved without smoothing"),
    ],
)
def test_maps_that_no_card_describes(write: Callable[[np.ndarray], Image.Image], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        propose(simple(tmp_path, write), "mine")


def test_jpeg_maps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels/train/000\.jpg: the label maps are JPEG"):
        propose(make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.jpg"), "mine")


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["a.zip", "b.zip"], "no image in it; found 2 .zip. Unzip archives first"),
        ([], "no image in it; found nothing"),
    ],
)
def test_folders_without_images(paths: list[str], says: str, tmp_path: Path) -> None:
    for path in paths:
        (tmp_path / path).write_bytes(b"x")
    with pytest.raises(UserError, match=says):
        propose(tmp_path, "mine")


def test_photos_alone(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "{id}.png")
    for path in tmp_path.glob("*.png"):
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(UserError, match=r"18 x images/\{split\}/\{id\}\.jpg\n.*must share their name"):
        propose(tmp_path, "mine")


def test_splits_that_nobody_knows(tmp_path: Path) -> None:
    make(tmp_path, "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("val", "test"))
    with pytest.raises(UserError, match=r"the splits are called test, val; .* name their folders train and val"):
        propose(tmp_path, "mine")


def test_cards_that_fit(tmp_path: Path) -> None:
    cards = [load_card(name, ROOT / "data") for name in known_datasets(ROOT / "data")]
    for name, writer in WRITERS.items():
        found = fitting(writer(tmp_path / name, Counts(9, 8), size=(32, 64)), cards)
        assert [card.name for card in found] == (["ade20k", "ade20k-outdoor"] if name == "ade20k" else [name])
    own = make(tmp_path / "own", "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "test"))
    assert fitting(own, cards) == []  # the layout of CamVid, and ids of its own

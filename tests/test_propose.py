"""dpgan.data.propose: encodings become cards; what looks wrong is told, and what no card describes is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from folders import COLORS, IDS, as_colors, as_palette, ids_map, make, simple
from PIL import Image
from published_layouts import WRITERS, Counts

from dpgan.data.propose import Proposal, fitting, propose, propose_size
from dpgan.data.propose.classes import voc_color
from dpgan.errors import UserError
from dpgan.labels import known_datasets, load_card

pytestmark = pytest.mark.filterwarnings("error")


def told(proposal: Proposal) -> str:
    return "\n".join([*proposal.found, *proposal.suspicious])


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


def test_cards_that_fit(tmp_path: Path) -> None:
    cards = [load_card(name, ROOT / "data") for name in known_datasets(ROOT / "data")]
    for name, writer in WRITERS.items():
        found = fitting(writer(tmp_path / name, Counts(9, 8), size=(32, 64)), cards)
        assert [card.name for card in found] == (["ade20k", "ade20k-outdoor"] if name == "ade20k" else [name])
    own = make(tmp_path / "own", "images/{split}/{id}.jpg", "labels/{split}/{id}.png", ("train", "test"))
    assert fitting(own, cards) == []  # the layout of CamVid, and ids of its own

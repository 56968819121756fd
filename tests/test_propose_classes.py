"""dpgan.data.propose: the class table of datasets as tools export them is right, or the user is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dpgan.data.decode import decode_ids
from dpgan.data.propose import Proposal, propose
from dpgan.data.propose.write import card_yaml
from dpgan.errors import UserError
from dpgan.labels import Card

pytestmark = pytest.mark.filterwarnings("error")

COLORS = [(0, 0, 0), (128, 64, 128), (0, 0, 142), (107, 142, 35), (70, 130, 180), (220, 20, 60)]
SIZE = (16, 24)  # height, width
NAMES = ["background", "road", "car", "tree", "sky"]
FIVE = dict(enumerate(NAMES))
Write = Callable[[np.ndarray, int], Image.Image]


def grey(values: Iterable[int]) -> Write:
    table = np.array(list(values), np.uint8)
    return lambda classes, _: Image.fromarray(table[classes % len(table)])


def palette(order: Iterable[int] = range(5)) -> Write:
    """Class c at index order.index(c); the colour is the class's."""
    order = list(order)

    def write(classes: np.ndarray, _: int) -> Image.Image:
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[classes])
        image.putpalette([channel for c in order for channel in COLORS[c]])
        return image

    return write


def own_palettes(classes: np.ndarray, i: int) -> Image.Image:
    return palette(np.random.default_rng(i).permutation(5).tolist())(classes, i)


def optimised(classes: np.ndarray, i: int) -> Image.Image:
    """As an optimiser saves it: only the classes of the map are in its palette."""
    present, index = np.unique(np.where(classes == i % 5, (i + 1) % 5, classes), return_inverse=True)
    image = Image.fromarray(index.reshape(classes.shape).astype(np.uint8))
    image.putpalette([channel for c in present for channel in COLORS[c]])
    return image


def random_palettes(classes: np.ndarray, i: int) -> Image.Image:
    image = Image.fromarray(classes.astype(np.uint8))
    image.putpalette(np.random.default_rng(i).integers(1, 256, 15).tolist())
    return image


def rgb(classes: np.ndarray, _: int) -> Image.Image:
    return Image.fromarray(np.array(COLORS, np.uint8)[classes])


def machine(classes: np.ndarray, _: int) -> Image.Image:
    return Image.fromarray(np.stack([classes.astype(np.uint8)] * 3, -1))


def folder(
    root: Path,
    write: Write,
    texts: dict[str, str | bytes] | None = None,
    image: str = "images/f{:03}.png",
    label: str = "labels/f{:03}.png",
    count: int = 18,
) -> Path:
    """Noise photos, label maps of five classes, and what lies next to them."""
    for i in range(count):
        rng = np.random.default_rng(i)
        classes = rng.permutation(np.r_[0:5, rng.integers(0, 5, 1)]).reshape(2, 3).repeat(8, 0).repeat(8, 1)
        photo = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        for pattern, picture in ((image, photo), (label, write(classes, i))):
            path = root / pattern.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def ids(proposal: Proposal) -> dict[int, str]:
    return {info.id: info.name for info in proposal.card.classes}


def colors(proposal: Proposal) -> dict[tuple[int, int, int], str]:
    return {info.color: info.name for info in proposal.card.classes}


def void(proposal: Proposal) -> list[str]:
    return [info.name for info in proposal.card.classes if info.void]


def told(proposal: Proposal) -> str:
    return "\n".join([*proposal.found, *proposal.suspicious])


def lines(*names: object) -> str:
    return "".join(f"{name}\n" for name in names)


CVAT = "# label:color_rgb:parts:actions\n" + lines(
    *("{}:{},{},{}::".format(n, *c) for n, c in zip(NAMES, COLORS, strict=False))
)
SYNONYMS = ["void", "building, edifice", "screen, silver screen", "screen, CRT screen", "car, auto"]
ODD = ["no", "road: main", 'ça "va"', "#5", "null"]
CITYSCAPES = (
    "import os; os.system('touch executed')\nlabels = [\n"
    + lines(
        *(
            f"  Label('{n}', {i + 7}, {i}, 'x', 0, False, False, {c}),"
            for i, (n, c) in enumerate(zip(NAMES, COLORS, strict=False))
        )
    )
    + "]\n"
)
ADE = "Idx\tRatio\tTrain\tVal\tName\n" + lines(
    *(f"{i + 1}\t0.1\t9\t9\t{n}, thing {i}" for i, n in enumerate(NAMES[:4]))
)
MMSEG = f"class D(Base):\n    METAINFO = dict(classes={tuple(NAMES)}, palette={[list(c) for c in COLORS[:5]]})\n"
SUPERVISELY = json.dumps(
    {
        "classes": [
            {"title": n, "id": 9000 + i, "shape": "bitmap", "color": "#{:02x}{:02x}{:02x}".format(*c)}
            for i, (n, c) in enumerate(zip(NAMES, COLORS, strict=False))
        ],
        "tags": [],
    }
)
MACHINE = {name: [i] * 3 for i, name in FIVE.items()}
FIRST_VOID = {0: "unlabelled", 1: "road", 2: "car", 3: "tree", 4: "sky"}


@pytest.mark.parametrize(
    ("write", "texts", "expected"),
    [
        (
            palette(),
            {
                "class_names.txt": lines("_background_", *NAMES[1:]),
                "labels.txt": lines("__ignore__", "_background_", *NAMES[1:]),
            },
            {0: "_background_", 1: "road", 2: "car", 3: "tree", 4: "sky", 255: "__ignore__"},
        ),
        (
            palette(),
            {"labels.txt": lines("__ignore__", "_background_", *NAMES[1:])},
            {0: "_background_", 1: "road", 2: "car", 3: "tree", 4: "sky", 255: "__ignore__"},
        ),
        (grey(range(5)), {"classes.txt": b"\xef\xbb\xbf" + lines(*FIRST_VOID.values()).encode()}, FIRST_VOID),
        (grey(range(5)), {"classes.txt": "\r\n".join(f"{n}  " for n in NAMES)}, FIVE),
        (grey([0, 255]), {"classes.txt": "background\nobject\n"}, {0: "background", 255: "object"}),
        (grey([0, 255]), {"classes.txt": "crack\n"}, {0: "class_0", 255: "crack"}),
        (
            grey([0, 255]),
            {"_classes.csv": "Pixel Value, Class\n0, background\n1, object\n"},
            {0: "background", 255: "object"},
        ),
        (grey([0, 255]), {"classes.txt": "0: background\n255: object\n"}, {0: "background", 255: "object"}),
        (grey([0, 1, 255]), {"classes.txt": "road\ncar\nvoid\n"}, {0: "road", 1: "car", 255: "void"}),
        (palette([0, 2, 1, 4, 3]), {"labelmap.txt": CVAT}, {0: "background", 1: "car", 2: "road", 3: "sky", 4: "tree"}),
        (palette(), {"labelmap.txt": CVAT}, FIVE),
        (
            grey(range(5)),
            {"classes.txt": lines("background", "lane 1", "lane 2", "lane 3", "lane 4")},
            {0: "background", 1: "lane 1", 2: "lane 2", 3: "lane 3", 4: "lane 4"},
        ),
        (
            grey(range(4)),
            {"classes.txt": lines("lane 1", "lane 2", "lane 3", "lane 4")},
            {0: "lane 1", 1: "lane 2", 2: "lane 3", 3: "lane 4"},
        ),
        (grey(range(5)), {"classes.txt": lines(*SYNONYMS)}, dict(enumerate(SYNONYMS))),
        (grey(range(5)), {"classes.txt": lines(*ODD)}, dict(enumerate(ODD))),
        (grey(range(5)), {"labels.txt": lines(*(f"{i}: {n}" for i, n in FIVE.items()))}, FIVE),
        (grey(range(5)), {"labels.txt": lines("# ids", *(f"{i} {n}" for i, n in FIVE.items()))}, FIVE),
        (grey(range(5)), {"labels.txt": lines(*(f"{n} {i}" for i, n in FIVE.items()))}, FIVE),
        (grey(range(5)), {"id2label.json": json.dumps({"id2label": FIVE})}, FIVE),
        (grey(range(5)), {"config.json": json.dumps({"label2id": {n: i for i, n in FIVE.items()}})}, FIVE),
        (
            grey(range(5)),
            {"_classes.csv": "Pixel Value, Class\n" + lines(*(f"{i}, {n}" for i, n in FIVE.items()))},
            FIVE,
        ),
        (
            grey(range(5)),
            {"classes.csv": "name,id\n" + lines(*(f'"{n}, x",{i}' for i, n in FIVE.items()))},
            {i: f"{n}, x" for i, n in FIVE.items()},
        ),
        (grey(range(5)), {"data.yaml": f"names: [{', '.join(NAMES[:4])}, no]\n"}, {**FIVE, 4: "no"}),
        (grey(range(5)), {"data.yaml": "names:\n" + lines(*(f"  {i}: {n}" for i, n in FIVE.items()))}, FIVE),
        (grey(range(7, 12)), {"labels.py": CITYSCAPES}, {i + 7: n for i, n in FIVE.items()}),
        (grey(range(5)), {"labels.py": CITYSCAPES}, FIVE),
        (
            grey(range(5)),
            {"objectInfo150.txt": ADE},
            {0: "class_0", **{i + 1: f"{n}, thing {i}" for i, n in enumerate(NAMES[:4])}},
        ),
        (
            grey(range(1, 6)),
            {"mine_dataset.py": MMSEG + "    def __init__(self, reduce_zero_label=True): pass\n"},
            {i + 1: n for i, n in FIVE.items()},
        ),
        (
            palette([0, 2, 1, 4, 3]),
            {"meta.json": json.dumps({"classes": NAMES, "palette": COLORS[:5]})},
            {0: "background", 1: "car", 2: "road", 3: "sky", 4: "tree"},
        ),
        (grey(range(5)), {"dataset.py": MMSEG}, FIVE),
        (
            grey(range(5)),
            {"metadata.json": json.dumps({"stuff_classes": NAMES, "stuff_colors": COLORS[:5], "thing_classes": []})},
            FIVE,
        ),
        (palette(), {"meta.json": SUPERVISELY}, FIVE),
        (machine, {"meta.json": SUPERVISELY, "obj_class_to_machine_color.json": json.dumps(MACHINE)}, FIVE),
        (grey(range(5)), {"obj_class_to_machine_color.json": json.dumps(MACHINE)}, FIVE),
        (
            grey(range(5)),
            {"notes.json": json.dumps({"categories": [{"id": i, "name": n} for i, n in FIVE.items()]})},
            FIVE,
        ),
        (
            grey(range(5)),
            {"config.json": json.dumps({"tag": {"type": "BrushLabels", "to_name": ["image"], "labels": NAMES}})},
            FIVE,
        ),
        (
            grey([0, 7, 11, 26]),
            {"classes.txt": lines("unlabeled", "road", "building", "car")},
            {0: "unlabeled", 7: "road", 11: "building", 26: "car"},
        ),
        (grey([1, 2, 3, 4]), {"classes.txt": lines(*NAMES[1:])}, {1: "road", 2: "car", 3: "tree", 4: "sky"}),
        (grey([1, 2, 3, 4]), {"classes.txt": lines(*NAMES)}, FIVE),
        (
            grey([0, 1, 2, 3, 255]),
            {"classes.txt": lines(*NAMES[1:])},
            {0: "road", 1: "car", 2: "tree", 3: "sky", 255: "void"},
        ),
        (grey(range(5)), {"a_labels.txt": lines(*FIVE.values()), "label_map.json": json.dumps(FIVE)}, FIVE),
    ],
)
def test_ids_get_the_right_names(
    write: Write, texts: dict[str, str | bytes], expected: dict[int, str], tmp_path: Path
) -> None:
    proposal = propose(folder(tmp_path, write, texts), "mine")
    assert ids(proposal) == expected
    assert not (tmp_path / "executed").exists()
    assert Card.model_validate(yaml.safe_load(card_yaml(proposal.card))) == proposal.card


RGB = {COLORS[i]: n for i, n in FIVE.items()}


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (rgb, {"labelmap.txt": CVAT}),
        (own_palettes, {"labelmap.txt": CVAT}),
        (optimised, {"labelmap.txt": CVAT}),
        (rgb, {"label_colors.txt": lines(*("{} {} {}\t{}".format(*c, n) for c, n in RGB.items()))}),
        (rgb, {"classes.csv": "name,r,g,b\n" + lines(*("{},{},{},{}".format(n, *c) for c, n in RGB.items()))}),
        (
            rgb,
            {"classes.csv": "name;color\n" + lines(*("{};#{:02x}{:02x}{:02x}".format(n, *c) for c, n in RGB.items()))},
        ),
        (rgb, {"labels.txt": lines(*("{}: [{}, {}, {}]".format(n, *c) for c, n in RGB.items()))}),
        (rgb, {"meta.json": SUPERVISELY, "obj_class_to_machine_color.json": json.dumps(MACHINE)}),
        (rgb, {"labels.py": CITYSCAPES}),
        (rgb, {"mine_dataset.py": MMSEG}),
        (rgb, {"config.json": json.dumps({"labels": [{"name": n, "color": c} for c, n in RGB.items()]})}),
        (
            rgb,
            {
                "panoptic.json": json.dumps(
                    {"categories": [{"id": i, "name": n, "color": c} for i, (c, n) in enumerate(RGB.items())]}
                )
            },
        ),
    ],
)
def test_colors_get_the_right_names(write: Write, texts: dict[str, str], tmp_path: Path) -> None:
    proposal = propose(folder(tmp_path, write, texts), "mine")
    assert proposal.card.encoding == "colors"
    assert colors(proposal) == RGB


@pytest.mark.parametrize("write", [own_palettes, optimised])
def test_palettes_that_differ_are_read_by_color(write: Write, tmp_path: Path) -> None:
    proposal = propose(folder(tmp_path, write), "mine")
    assert "Palettes differ from file to file (index" in told(proposal)
    assert set(colors(proposal)) == set(COLORS[:5])
    path = tmp_path / "labels/f003.png"
    seen = decode_ids(path, proposal.card.label_format).image
    assert seen is not None
    np.testing.assert_array_equal(
        proposal.card.palette[proposal.card.id_table[np.asarray(seen)]], np.asarray(Image.open(path).convert("RGB"))
    )


def cut(classes: np.ndarray, i: int) -> Image.Image:
    """One palette, in some files without its end."""
    image = palette()(classes % (5 - i % 3), i)
    image.putpalette([channel for c in range(5 - i % 3) for channel in COLORS[c]])
    return image


def test_palettes_that_are_cut_agree(tmp_path: Path) -> None:
    proposal = propose(folder(tmp_path, cut, {"classes.txt": lines(*NAMES)}), "mine")
    assert (proposal.card.encoding, ids(proposal)) == ("palette", FIVE)


BIG = np.random.default_rng(9).integers(1, 2**24, 2000)


def panoptic(classes: np.ndarray, i: int) -> Image.Image:
    codes = BIG[classes + 10 * i]
    return Image.fromarray(np.stack([codes & 255, codes >> 8 & 255, codes >> 16], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("write", "texts", "says"),
    [
        (
            grey([1, 2, 3, 4]),
            {"classes.txt": lines("road", "car", "tree", "sky", "bird")},
            [
                "counted from 0, one name per line: 1 = car, 2 = tree, 3 = sky, 4 = bird; in no map: road",
                "counted from 1, one name per line: 1 = road, 2 = car, 3 = tree, 4 = sky; in no map: bird",
                "write classes.txt as `id: name`, one class per line",
            ],
        ),
        (
            grey(range(4)),
            {"classes.txt": lines("road", "car", "tree", "sky", "bird")},
            ["counted from 0", "counted from 1"],
        ),
        (
            grey([0, 1, 255]),
            {"classes.txt": lines("void", "road", "car")},
            ["255 = car", "0 = void, 1 = road; in no map: car"],
        ),
        (
            grey(range(5)),
            {"classes.txt": lines(*NAMES), "labels.txt": lines(*NAMES[1:], "bird")},
            [
                "two lists disagree",
                "classes.txt",
                "0 = background",
                "labels.txt",
                "0 = road",
                "rename or remove the other",
            ],
        ),
        (
            grey(range(4)),
            {"categories.json": json.dumps([{"id": i, "name": n} for i, n in enumerate(NAMES[1:], 1)])},
            ["by id", "by id less 1", "0 = road"],
        ),
        (grey(range(9)), {"classes.txt": "road\ncar\n"}, ["no list of classes fits", "it has 2 names", "5 values"]),
        (grey([0, 255]), {}, ["255 was taken for void", "`0: background` and `255: object`"]),
        (grey([0, 255]), {"classes.txt": "a\nb\nc\n"}, ["it has 3 names, and the label maps hold 2 values: 0, 255"]),
        (random_palettes, {}, ["different palettes: index 0 is", "labels/f000.png", "labels/f001.png"]),
        (
            palette([0, 2, 1, 4, 3]),
            {"labels.json": json.dumps([{"id": i, "name": n, "color": COLORS[i]} for i, n in FIVE.items()])},
            ["by id", "by colour"],
        ),
        (panoptic, {}, ["90 of 90 colours stand in one label map only", "R + 256 G + 65536 B"]),
        (
            panoptic,
            {"panoptic.json": json.dumps({"annotations": [{"segments_info": []}]})},
            ["panoptic.json next to them describes segments"],
        ),
    ],
)
def test_what_is_not_sure_is_asked(write: Write, texts: dict[str, str], says: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        propose(folder(tmp_path, write, texts), "mine")
    assert str(refused.value).startswith(str(tmp_path))
    for part in says:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\ufeff".encode("utf-16-le") + lines(*NAMES).encode("utf-16-le"), "it is UTF-16; save it as UTF-8"),
        (lines(*NAMES).encode("utf-16-le"), "as UTF-16 or binary files do"),
        ("straße\nbäume\n".encode("latin-1"), "it is not UTF-8"),
        ("road\n\ncar\n", "line 2 is empty"),
        ("# my classes\nroad\ncar\n", "line 1 is '# my classes': a comment or a name?"),
        ("sky\nsky\n", "the name 'sky' stands there twice"),
        ("0 sky\ncar\n", "line 1 begins with an id, line 2 does not"),
        ("0: sky\n0: car\n", "the id 0 stands there twice"),
        ("road, car, tree, sky\n", "it is one line with commas"),
    ],
)
def test_a_list_that_is_not_used_is_named_with_the_reason(text: str | bytes, says: str, tmp_path: Path) -> None:
    proposal = propose(folder(tmp_path, grey(range(5)), {"classes.txt": text}), "mine")
    assert ids(proposal)[1] == "class_1"
    assert any(line.startswith("classes.txt is not used") and says in line for line in proposal.suspicious)


def test_a_list_without_colors_for_maps_in_colors(tmp_path: Path) -> None:
    proposal = propose(folder(tmp_path, rgb, {"classes.txt": lines(*NAMES)}), "mine")
    assert "it gives no colours, and the label maps hold colours; write `name,r,g,b`" in told(proposal)
    assert "color_804080" in ids(proposal).values()


def test_ignored_classes_are_void(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {"labels.txt": lines("__ignore__", "_background_", *NAMES[1:])}
    assert void(propose(folder(tmp_path, palette(), texts), "mine")) == ["__ignore__"]

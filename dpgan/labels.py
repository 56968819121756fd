"""Dataset cards: classes, palettes, id tables and the layout of the raw files.

A card is `data/<name>/dataset.yaml`. Two id spaces exist, and only this module knows both:

- *raw ids* are the grey values in a dataset's label files (`ClassInfo.id`);
- *class indices* are positions in the card's class list, 0..C-1. Everything behind `prepare` sees only these.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from dpgan.settings import Model, load_yaml, nearest, parse, unknown_name

Size = Annotated[tuple[int, int], Field(description="height, width in pixels; multiples of 32")]
Role = Literal["train", "val"]
# ids: 8-bit grey, the value is the id. palette: the palette's index is the id. colors: RGB, a class is its `color`.
Encoding = Literal["ids", "palette", "colors"]


Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]


class LabelFormat(NamedTuple):
    """How label and instance maps are written: all of a card that decoding reads.

    What is found in a file depends on its bytes and on this, so both are the key under which `data.index` keeps it.
    """

    encoding: Encoding
    colors: tuple[tuple[int, Color], ...]  # (raw id, RGB) with `encoding: colors`, else empty
    void: tuple[int, ...]  # raw ids that may have any code in an instance map


class ClassInfo(Model):
    """One row of a card's class list."""

    id: int = Field(ge=0, le=255, description="raw id; with `encoding: colors` any number that no other class has")
    name: str = Field(min_length=1, description="as reports and `select` call it; no two classes share one")
    color: Color = Field(description="RGB in pictures of label maps")
    evaluate: bool = Field(default=False, description="counts in mIoU")
    thing: bool = Field(default=False, description="countable: its objects are cropped and scored on their own")
    void: bool = Field(default=False, description="don't care: weight 0 in the losses, ignored in mIoU")


class Layout(Model):
    """Where the raw files of a pair lie below the raw folder; `{split}` and `{id}` are filled in.

    `{id}` may span folders: `leftImg8bit/{split}/{id}_leftImg8bit.png` pairs Cityscapes, city folders included.
    """

    image: str = Field(description="photos")
    label: str = Field(description="label maps")
    instance: str | None = Field(default=None, description="instance maps: class id * 1000 + number, 16-bit")
    ids: str | None = Field(
        default=None, description="text file with the ids of a split, one a line, where paths do not tell the split"
    )


class Select(Model):
    """A subset of the pairs by the classes of their label maps; both conditions must hold."""

    any: list[str] = Field(default=[], description="names of classes: one of them at least is in the map")
    none: list[str] = Field(default=[], description="names of classes: none of them is in the map")


class Toyscapes(Model):
    """The recipe of a procedural dataset: how many scenes, how large, from which seed."""

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    size: Size
    seed: int = 0


class Card(Model):
    """A dataset as dpgan knows it; read from `data/<name>/dataset.yaml`."""

    name: str = Field(description="the name of its folder in data/; models are registered as dpgan-<name>")
    title: str = Field(description="one line for reports")
    licence: str = Field(description="of the photos, and what it allows")
    obtain: str | None = Field(default=None, description="what to download, and from where; told where it is missing")
    layout: Layout
    splits: dict[Role, str] = Field(description="the folder name that stands for {split}, by role")
    size: Size = Field(description="training resolution: height, width")
    preset: str = Field(description="row of dpgan/presets.py that trains it")
    encoding: Encoding = Field(default="ids", description="what a pixel of a label file holds")
    min_pairs: int = Field(default=8, ge=1, description="fewest pairs a split may have")
    max_faulty: float = Field(default=0.01, ge=0, lt=1, description="share of a split's pairs that may be left out")
    max_stretch: float = Field(default=1.2, ge=1, description="how far `size` may change a photo's aspect ratio")
    select: Select | None = Field(default=None, description="which of the pairs belong to the dataset; default: all")
    other_editions: dict[str, str] = Field(
        default={}, description="file name with wildcards -> the edition it gives away, which this card does not fit"
    )
    toyscapes: Toyscapes | None = Field(default=None, description="recipe, where the raw files are rendered")
    classes: list[ClassInfo] = Field(min_length=2, max_length=255)

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> Card:
        by_id, by_name, by_color = Counter[int](), Counter[str](), Counter[tuple[int, int, int]]()
        for info in self.classes:
            by_id[info.id] += 1
            by_name[info.name] += 1
            by_color[info.color] += 1
            if by_id[info.id] > 1:
                raise ValueError(f"classes: id {info.id} stands twice; every id belongs to one class")
            if by_name[info.name] > 1:
                raise ValueError(f"classes: two are called {info.name!r}; reports could not tell them apart")
            if by_color[info.color] > 1 and self.encoding == "colors":
                raise ValueError(
                    f"classes: {info.name} has the color {list(info.color)} of another class; with `encoding: colors` "
                    "a pixel's color must tell its class"
                )
            if info.evaluate and info.void:
                raise ValueError(
                    f"classes: {info.name} is both `evaluate` and `void`; a don't-care class cannot count in mIoU"
                )
        if not any(c.evaluate for c in self.classes):
            raise ValueError("classes: none has `evaluate: true`; mIoU needs at least one")
        for name in [*self.select.any, *self.select.none] if self.select else []:
            if name not in by_name:
                guess = nearest(name, by_name)
                hint = f"; did you mean {guess!r}?" if guess else ""
                raise ValueError(f"select: no class is called {name!r}{hint}")
        return self

    @model_validator(mode="after")
    def _files_can_be_found(self) -> Card:
        if set(self.splits) != {"train", "val"}:
            raise ValueError("splits: both `train` and `val` must name a folder")
        for key, pattern in self.layout.model_dump(exclude_none=True).items():
            if "{id}" not in pattern and key != "ids":
                raise ValueError(f"layout.{key}: {pattern!r} lacks {{id}}, which names the pair")
            if "{split}" not in pattern and (key == "ids" or not self.layout.ids):
                raise ValueError(f"layout.{key}: {pattern!r} lacks {{split}}: both splits would hold the same files")
        for height_or_width in self.size:
            if height_or_width < 32 or height_or_width % 32:
                raise ValueError(f"size: {height_or_width} is not a multiple of 32")
        return self

    @property
    def num_classes(self) -> int:
        """C: input classes of the generator, void classes included."""
        return len(self.classes)

    @cached_property
    def void(self) -> np.ndarray:
        """bool [C]: don't-care classes (weight 0 in the cross-entropy, ignored in mIoU)."""
        return np.array([c.void for c in self.classes])

    @cached_property
    def evaluated(self) -> np.ndarray:
        """int [K]: class indices that count in mIoU, in the card's order."""
        return np.array([i for i, c in enumerate(self.classes) if c.evaluate])

    @cached_property
    def things(self) -> np.ndarray:
        """bool [C]: countable classes."""
        return np.array([c.thing for c in self.classes])

    @cached_property
    def palette(self) -> np.ndarray:
        """uint8 [C, 3]: RGB by class index."""
        return np.array([c.color for c in self.classes], dtype=np.uint8)

    @cached_property
    def label_format(self) -> LabelFormat:
        """How the label and instance maps are written."""
        colors = tuple((c.id, c.color) for c in self.classes) if self.encoding == "colors" else ()
        return LabelFormat(self.encoding, colors, tuple(sorted(c.id for c in self.classes if c.void)))

    @cached_property
    def id_table(self) -> np.ndarray:
        """int16 [256]: class index by raw id, -1 where the card does not know the id."""
        table = np.full(256, -1, dtype=np.int16)
        for index, info in enumerate(self.classes):
            table[info.id] = index
        return table

    def selects(self, histogram: np.ndarray) -> bool:
        """Whether a label map with `histogram` (int [256]: pixels by raw id) is in the subset that `select` names."""
        if self.select is None:
            return True
        present = {info.name for info in self.classes if histogram[info.id]}
        some = not self.select.any or not present.isdisjoint(self.select.any)
        return some and present.isdisjoint(self.select.none)

    def colorize(self, labels: np.ndarray) -> np.ndarray:
        """Class indices uint8 [..., H, W] -> RGB uint8 [..., H, W, 3] in the card's palette."""
        return self.palette[labels]

    @property
    def digest(self) -> str:
        """sha256 of name, size and classes; part of every identity that depends on what classes mean.

        The rest of a card decides which pairs there are, which `dataset_hash` says, or no result: a licence that is
        corrected does not train again.
        """
        return hashlib.sha256(self.model_dump_json(include={"name", "size", "classes"}).encode()).hexdigest()


def card_path(name: str, root: Path = Path("data")) -> Path:
    """Where the card of a dataset lies; `root` is the project's data folder."""
    return root / name / "dataset.yaml"


def known_datasets(root: Path = Path("data")) -> list[str]:
    """Names of the datasets that have a card."""
    return sorted(p.parent.name for p in root.glob("*/dataset.yaml"))


def load_card(name: str, root: Path = Path("data")) -> Card:
    """The card of dataset `name`; a UserError names the nearest known one where there is none."""
    path = card_path(name, root)
    if not path.is_file():
        raise unknown_name("dataset", name, known_datasets(root), where="params.yaml: dataset")
    card = parse(Card, load_yaml(path), path)
    if card.name != name:
        raise unknown_name("name", card.name, [name], where=f"{path}: name")
    return card

"""Index, prepare and the training loader on 1024x2048 PNGs, beside a DataLoader that reads them with Pillow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from published_layouts import Counts, write_cityscapes
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import copy_bandwidth
from benchmarks.measure import Options, Row, take_turns
from dpgan.data.index import scan
from dpgan.data.loader import Source, batches
from dpgan.data.prepare import open_prepared, prepare
from dpgan.labels import load_card

ROOT = Path(__file__).parents[1]
IMAGES, BATCH, SEEN = 16, 4, 512  # files; images a step; images that the fast loader is timed over


class PillowPairs(Dataset[tuple[Tensor, Tensor]]):
    """What the released loaders do for every image of every epoch: decode, resize, flip, normalise."""

    def __init__(self, raw: Path, size: tuple[int, int]) -> None:
        self.photos = sorted(raw.glob("leftImg8bit/train/*/*.png"))
        self.labels = sorted(raw.glob("gtFine/train/*/*_labelIds.png"))
        self.size = size[::-1]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        photo = Image.open(self.photos[index]).convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        label = Image.open(self.labels[index]).resize(self.size, Image.Resampling.NEAREST)
        pixels, ids = np.asarray(photo), np.asarray(label)
        if index % 2:
            pixels, ids = pixels[:, ::-1], ids[:, ::-1]
        normalised = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
        return normalised, torch.from_numpy(ids.copy())


def data(options: Options) -> Iterator[Row]:
    """Seconds an image of the CPU, on one core."""
    card = load_card("cityscapes", ROOT / "data")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = write_cityscapes(folder / "raw", Counts(IMAGES, 1), (1024, 2048))
        loader = DataLoader(PillowPairs(raw, card.size), batch_size=BATCH)
        frame = scan(card, raw, workers=1)
        prepared = folder / "prepared"
        prepare(frame, card, raw, prepared, workers=1)
        split = open_prepared(prepared, "train")

        def again() -> None:
            shutil.rmtree(folder / "again", ignore_errors=True)
            prepare(frame, card, raw, folder / "again", workers=1)

        def train() -> None:
            source = Source(
                split.images, split.labels, np.arange(IMAGES), seed=0, batch=BATCH, total=SEEN, accumulate=1, rank=0,
                workers=1, steps=range(SEEN // BATCH), flip=True, crop=None,
            )  # fmt: skip
            for _ in batches(source, options.device):
                pass

        works = {
            "reference": lambda: list(loader),
            "index": lambda: scan(card, raw, workers=1),
            "prepare": again,
            "training loader": train,
        }
        taken = take_turns(works, options.rounds)
    images = {"reference": IMAGES, "index": IMAGES + 1, "prepare": IMAGES + 1, "training loader": SEEN}
    each = {name: [value / images[name] for value in values] for name, values in taken.items()}
    reference = each.pop("reference")
    for name, values in each.items():
        target = bound = None
        if name == "training loader":  # at best it reads uint8 pixels and ids, and writes floats and ids, once
            copied = card.size[0] * card.size[1] * (3 + 1 + 3 * 4 + 1)
            target, bound = 20.0, float(np.median(reference)) / (copied / copy_bandwidth(options.device))
        yield Row(f"{name}, an image of 1024x2048 -> 256x512", values, reference, target=target, bound=bound)

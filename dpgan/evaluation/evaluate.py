"""Scores of generators on the validation split, next to their floor and ceiling.

A score's name is its protocol. `fid_lite0`, `kid_lite0`: between images and the validation photos at training
resolution, float images, one noise a label map. `miou_trained`: the judge trained on real training photos reads the
images back, against the label maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpgan.config import EvaluateSettings
from dpgan.data import order
from dpgan.data.pixels import to_float, to_uint8
from dpgan.data.prepare import Split
from dpgan.evaluation.baselines import class_mean_colors, paint
from dpgan.evaluation.features import FeatureExtractor, extract
from dpgan.evaluation.fid import fid, kid
from dpgan.evaluation.judges import Judge
from dpgan.evaluation.readings import read_all, scores
from dpgan.evaluation.report import contact_sheet
from dpgan.labels import Card
from dpgan.models.generators import Generator

Report = Callable[[int, int], None]
Scores = dict[str, float]


def label_batches(split: Split, batch: int) -> Iterator[Tensor]:
    """uint8 [b, H, W], the split's label maps in their order."""
    for start in range(0, len(split.ids), batch):
        yield torch.from_numpy(np.array(split.labels[start : start + batch]))


def photo_batches(split: Split, batch: int) -> Iterator[Tensor]:
    """float [b, 3, H, W] in [-1, 1], the split's photos in their order."""
    for start in range(0, len(split.ids), batch):
        yield to_float(split.images[start : start + batch])


class Evaluator:
    """Scores sets of images, one a label map of the validation split, by the same extractor, judge and photos."""

    def __init__(
        self,
        card: Card,
        train: Split,
        val: Split,
        extractor: FeatureExtractor,
        judge: Judge,
        settings: EvaluateSettings,
    ) -> None:
        self.card, self.train, self.val = card, train, val
        self.extractor, self.judge, self.settings = extractor, judge, settings
        self.real = extract(extractor, photo_batches(val, settings.batch))

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.judge.device

    def _score(self, images: Iterable[Tensor], labels: Iterable[Tensor]) -> Scores:
        """All scores of batches of images, with the label maps that they should show."""
        features: list[np.ndarray] = []

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch, truth in zip(images, labels, strict=True):
                features.append(self.extractor(batch).numpy())
                yield batch, truth

        judged = self._judged(pairs())
        return {**self._distances(np.concatenate(features)), **judged}

    def _judged(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Scores:
        """What the judge reads in batches of images, against the label maps that they should show."""
        return scores(read_all(self.judge, pairs, self.card), self.judge.name, self.card)

    def _distances(self, features: np.ndarray) -> Scores:
        s, name = self.settings, self.extractor.name
        subset = min(s.kid_subset_size, len(features), len(self.real))
        mean, deviation = kid(self.real, features, subsets=s.kid_subsets, subset_size=subset)
        return {
            f"fid_{name}": fid(self.real, features),
            f"kid_{name}": mean,
            f"kid_{name}_deviation": deviation,
        }

    def _labels(self) -> Iterator[Tensor]:
        return label_batches(self.val, self.settings.batch)

    @torch.no_grad()
    def fakes(self, generator: Generator, labels: Tensor, chosen: range) -> Tensor:
        """Float [b, 3, H, W] in [-1, 1]: the images for label maps [b, H, W] with the numbers `chosen`.

        The noise of image i depends on the noise seed and i alone.
        """
        noise = torch.from_numpy(order.noise_at(self.settings.noise_seed, chosen, generator.noise_channels))
        return generator(labels.to(self.device), noise.to(self.device)).float().cpu()

    def generator(self, generator: Generator, report: Report) -> Scores:
        """The generator's images, one noise a label map."""

        def images() -> Iterator[Tensor]:
            done = 0
            for labels in self._labels():
                at = range(done, done + len(labels))
                yield self.fakes(generator, labels, at)
                done = at.stop
                report(done, len(self.val.ids))

        return self._score(images(), self._labels())

    def contact_sheet(self, generator: Generator, path: Path, rows: int = 8) -> None:
        """PNG of label map | real photo | generated, for label maps spread evenly over the validation split."""
        chosen = np.linspace(0, len(self.val.ids) - 1, min(rows, len(self.val.ids))).round().astype(int)
        labels = np.stack([self.val.labels[i] for i in chosen])
        fakes = [
            self.fakes(generator, torch.from_numpy(one[None]), range(i, i + 1))
            for i, one in zip(chosen, labels, strict=True)
        ]
        columns = {
            "label map": self.card.colorize(labels),
            "real photo": np.stack([self.val.images[i] for i in chosen]),
            "generated": to_uint8(torch.cat(fakes)),
        }
        contact_sheet(columns, path)

    def floor(self) -> Scores:
        """Every pixel in its class's mean colour over the training photos: what no generator may fall below."""
        colors = class_mean_colors(self.train.images, self.train.labels, self.card.num_classes)
        return self._score((to_float(paint(labels.numpy(), colors)) for labels in self._labels()), self._labels())

    def ceiling(self) -> Scores:
        """Real photos. mIoU: the validation photos themselves; FID and KID: as many training photos against them."""
        chosen = np.sort(np.random.default_rng(0).permutation(len(self.train.ids))[: len(self.val.ids)])
        some = (
            to_float(self.train.images[part]) for part in np.array_split(chosen, -(-len(chosen) // self.settings.batch))
        )
        judged = self._judged(zip(photo_batches(self.val, self.settings.batch), self._labels(), strict=True))
        return {**self._distances(extract(self.extractor, some)), **judged}


def all_finite(generator: Generator) -> bool:
    """Whether every weight and buffer is a finite number."""
    return all(bool(torch.isfinite(value).all()) for value in generator.state_dict().values())


def protocol(
    extractor: FeatureExtractor, judge: str, judge_sha256: str, data_hash: str, settings: EvaluateSettings
) -> dict[str, Any]:
    """What a score depends on beside the generator: two scores compare only where this is equal."""
    return {
        "features": extractor.name,
        "features_sha256": extractor.digest,
        "judge": judge,
        "judge_sha256": judge_sha256,
        "data_hash": data_hash,
        **settings.model_dump(exclude={"inception_weights", "batch"}),
    }

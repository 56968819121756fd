"""Scores of sets of images, one a label map of the validation split, next to their floor and ceiling.

A score's name is its protocol. `fid_lite0`, `kid_lite0`: between images and the validation photos at training
resolution, float images. `miou_JUDGE`, `obj_miou_JUDGE`, `accuracy_JUDGE`, `iou_JUDGE/CLASS`: what a judge (`judges`)
reads in the images, against the label maps. `diversity_lite0`: how much the images of one label map differ from noise
to noise, by features, and `diversity_lpips` by LPIPS. `fid_lite0_x0.5`: at half the resolution, from resized label maps
and against resized photos. `fid_lite0_objects_small`: of crops (`objects`). Scores are means over the noise seeds;
those by resolution and of objects, which cost many times as much, are of the first alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpgan import identities
from dpgan.checks import of_scoring, refuse
from dpgan.config import EvaluateSettings
from dpgan.data.prepare import Split, offered
from dpgan.errors import UserError
from dpgan.evaluation import MEASURE
from dpgan.evaluation.baselines import class_mean_colors
from dpgan.evaluation.diversity import diversity
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.features import FeatureExtractor
from dpgan.evaluation.fid import fid, fid_contributions, kid_with_contributions
from dpgan.evaluation.intervals import Estimate, of_sums, of_tables
from dpgan.evaluation.judges import Judge
from dpgan.evaluation.lpips import Lpips
from dpgan.evaluation.measure import (
    Generated,
    Job,
    Jobs,
    Measured,
    Observer,
    Painted,
    Pictures,
    Report,
    Source,
    measure,
    photos,
)
from dpgan.evaluation.objects import CropObserver, Objects, find_objects, measure_crops, object_scores, which_objects
from dpgan.evaluation.readings import measures, right
from dpgan.evaluation.reference import References
from dpgan.evaluation.report import contact_sheet
from dpgan.labels import Card
from dpgan.models.generators import Generator

Scores = dict[str, Estimate]
# Images of label maps with these numbers in the validation split, under a noise seed: -> uint8 [n, H, W, 3].
Painter = Callable[[np.ndarray, int], np.ndarray]


class Evaluator:
    """Scores sets of images, one a label map of the validation split, by the same extractor, judge and photos.

    `engine` computes; `progress` makes, of the unit and of what it is of, what reports the progress.
    UserError for what `checks.of_scoring` finds.
    """

    def __init__(
        self,
        card: Card,
        train: Split,
        val: Split,
        extractor: FeatureExtractor,
        judge: Judge,
        settings: EvaluateSettings,
        references: References,
        lpips: Lpips | None = None,
        engine: Engine | None = None,
        progress: Callable[[str, str], Report | None] = lambda unit, subject: None,
    ) -> None:
        self.card, self.train, self.val = card, train, val
        self.extractor, self.judge, self.settings = extractor, judge, settings
        self.references, self.lpips, self.progress = references, lpips, progress
        self.engine = engine or Engine()
        self.seeds = tuple(range(settings.noise_seed, settings.noise_seed + settings.noise_seeds))
        self.everything = np.arange(len(val.ids))
        refuse(of_scoring(settings, card, offered(train, val, card)))
        self.real = self._reference(val, self.everything, "val")
        # Percent of the pixels that are read right in each of the images that `generator` or `images` scored last.
        self.right = np.full(len(val.ids), np.nan)

    def generator(self, generator: Generator, whose: str = "the generator", further: bool = True) -> Scores:
        """Scores of a generator's images. `further`: by resolution and of objects too.

        `whose` names it in progress and errors.
        """
        source = Generated(generator)
        observer = Observer(source, self.seeds, self.extractor, self.judge, self.card, self.lpips)
        measured = self._measured(observer, self._jobs(None), whose)
        self.right = right(measured.tables)
        scores = {**self._distances(self.real, measured), **self._readings(measured)}
        if len(self.seeds) > 1:
            scores[f"diversity_{self.extractor.name}"] = self._mean(diversity(measured.features))
        if len(measured.apart):
            scores["diversity_lpips"] = self._mean(100 * measured.apart)
        if not further:
            return scores
        for factor in self.settings.resolutions:
            real = self._reference(self.val, self.everything, "val", factor)
            observer = Observer(source, self.seeds[:1], self.extractor, None, self.card)
            at = self._measured(observer, self._jobs(None, factor), f"{whose} at {factor:g}x")
            scores |= {f"{name}_x{factor:g}": score for name, score in self._distances(real, at).items()}
        return scores | self._of_objects(source, self._jobs(None), self.seeds[:1], whose)

    def images(self, images: np.ndarray, whose: str = "the images") -> Scores:
        """Scores of finished images, uint8 [N, H, W, 3], one for every label map of the validation split, in its order.

        UserError where there are more or fewer, or where they have another size.
        """
        if images.shape != (expected := self.val.images.shape):
            raise UserError(
                f"{whose}: {len(images)} of {_size(images)}, and the validation split has {expected[0]} label maps of "
                f"{_size(self.val.images)}; there must be one image a label map, of its size"
            )
        jobs = self._jobs(images)
        measured = self._seen(photos, jobs, whose)
        self.right = right(measured.tables)
        return self._without_noise(photos, jobs, measured, whose)

    def floor(self) -> Scores:
        """Every pixel in its class's mean colour over the training photos: what no generator may fall below."""
        colors = class_mean_colors(self.train.images, self.train.labels, self.card.num_classes)
        source, jobs = Painted(colors), self._jobs(None)
        return self._without_noise(source, jobs, self._seen(source, jobs, "the floor"), "the floor")

    def ceiling(self) -> Scores:
        """Real photos. mIoU: the validation photos themselves; FID and KID: as many training photos against them."""
        chosen = np.sort(np.random.default_rng(0).permutation(len(self.train.ids))[: len(self.val.ids)])
        others = self._reference(self.train, chosen, "train")
        observer = Observer(photos, (0,), None, self.judge, self.card)
        judged = self._measured(observer, self._jobs(self.val.images), "the ceiling")
        return {**self._distances(self.real, replace(judged, features=others[None])), **self._readings(judged)}

    def painter(self, generator: Generator) -> Painter:
        """What a generator paints for label maps of the validation split."""

        pictures = Pictures(Generated(generator))
        memory = Observer(pictures.source, (0,), None, None, self.card).worker_bytes(self._jobs(None))

        def paint(chosen: np.ndarray, seed: int) -> np.ndarray:
            job = Job(chosen.tolist(), np.stack([self.val.labels[i] for i in chosen]), np.empty(0, np.uint8))
            return self.engine.once(pictures, (job, seed), memory)

        return paint

    def contact_sheet(self, paint: Painter, path: Path, rows: int = 8) -> None:
        """PNG of label map | real photo | generated, for label maps spread evenly over the validation split."""
        chosen = np.linspace(0, len(self.val.ids) - 1, min(rows, len(self.val.ids))).round().astype(int)
        columns = {
            "label map": self.card.colorize(np.stack([self.val.labels[i] for i in chosen])),
            "real photo": np.stack([self.val.images[i] for i in chosen]),
            "generated": paint(chosen, self.settings.noise_seed),
        }
        contact_sheet(columns, path)

    def _jobs(self, images: np.ndarray | None, factor: float = 1) -> Jobs:
        """All label maps of the validation split, with or without images of theirs."""
        return Jobs(self.val.labels, images, self.everything, factor)

    def _reference(self, split: Split, rows: np.ndarray, name: str, factor: float = 1) -> np.ndarray:
        """Features of photos of a split, float64 [N, D], from the disk where they have been extracted before."""
        jobs = Jobs(split.labels, split.images, rows, factor)

        at = "" if factor == 1 else f" at {factor:g}x"

        def extract() -> np.ndarray:
            observer = Observer(photos, (0,), self.extractor, None, self.card)
            return self._measured(observer, jobs, f"the {name} photos{at}").features[0]

        return self.references.features(self.extractor, {"split": name, "rows": rows.tolist(), "x": factor}, extract)

    def _seen(self, source: Source, jobs: Jobs, whose: str) -> Measured:
        """What extractor and judge see in images that no noise changes."""
        return self._measured(Observer(source, (0,), self.extractor, self.judge, self.card), jobs, whose)

    def _without_noise(self, source: Source, jobs: Jobs, measured: Measured, whose: str) -> Scores:
        """All scores of images that no noise changes."""
        scores = self._distances(self.real, measured) | self._readings(measured)
        return scores | self._of_objects(source, jobs, (0,), whose)

    def _measured(self, observer: Observer, jobs: Jobs, whose: str) -> Measured:
        """What is seen in images. UserError if they have features that are not finite; `whose` they are."""
        measured = measure(observer, jobs, self.engine, self.progress("images", whose))
        lost = np.flatnonzero(~np.isfinite(measured.features).all(axis=(0, 2)))
        if len(lost):
            raise UserError(
                f"{whose}: {len(lost)} of {len(jobs.rows)} images have features that are not finite, number {lost[0]} "
                "first: the weights that made them, or those of the extractor, hold NaN or infinity"
            )
        return measured

    def _distances(self, real: np.ndarray, measured: Measured) -> Scores:
        """FID and KID of each seed's features against `real`."""
        name, n = self.extractor.name, measured.features.shape[1]
        return {
            f"fid_{name}": of_sums(
                [(fid(real, fakes), fid_contributions(real, fakes)) for fakes in measured.features], n
            ),
            f"kid_{name}": of_sums([kid_with_contributions(real, fakes) for fakes in measured.features], n),
        }

    def _mean(self, by_label_map: np.ndarray) -> Estimate:
        """The mean of what all noises together give for each label map, [N]."""
        mean = float(by_label_map.mean())
        return replace(of_sums([(mean, (by_label_map - mean,))], len(by_label_map)), seeds=len(self.seeds))

    @cached_property
    def objects(self) -> Objects:
        """The objects of the validation split."""
        return find_objects(self.val, self.card)

    def _of_objects(self, source: Source, jobs: Jobs, seeds: tuple[int, ...], whose: str) -> Scores:
        """FID and KID of the objects in the images of `source` by their size, where the settings ask for them."""
        if not self.settings.objects:
            return {}
        e, objects = self.extractor, self.objects
        real = self.references.features(
            e, {"objects": objects.digest},
            lambda: self._crops(CropObserver(photos, (0,), e, objects), self._jobs(self.val.images), "the photos")[0],
        )  # fmt: skip
        fakes = self._crops(CropObserver(source, seeds, e, objects), jobs, whose)
        return object_scores(real, fakes, objects, len(self.val.ids), e.name)

    def _crops(self, observer: CropObserver, jobs: Jobs, whose: str) -> np.ndarray:
        return measure_crops(observer, jobs, self.engine, self.progress("objects", whose))

    def _readings(self, measured: Measured) -> Scores:
        """What the judge read."""
        found = of_tables(measured.tables, measures(self.judge.name, self.card))
        # A class that is neither there nor predicted has no IoU.
        return {name: score for name, score in found.items() if "/" not in name or np.isfinite(score.value)}


def _size(images: np.ndarray) -> str:
    return "x".join(str(side) for side in images.shape[1:3])


def all_finite(generator: Generator) -> bool:
    """Whether every weight and buffer is a finite number."""
    return all(bool(torch.isfinite(value).all()) for value in generator.state_dict().values())


def protocol(
    extractor: FeatureExtractor, judge: str, judge_sha256: str, data_hash: str, settings: EvaluateSettings, card: Card
) -> dict[str, Any]:
    """What a score depends on except the generator (`identities.protocol`)."""
    return identities.protocol(
        measure=MEASURE,
        features=extractor.name,
        features_sha256=extractor.digest,
        judge=judge,
        judge_sha256=judge_sha256,
        data_hash=data_hash,
        evaluated={int(index): card.classes[index].name for index in card.evaluated},
        void=np.flatnonzero(card.void).tolist(),
        objects=which_objects(card) if settings.objects else None,
        noise_seed=settings.noise_seed,
        noise_seeds=settings.noise_seeds,
    )

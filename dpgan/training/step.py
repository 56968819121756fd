"""One training step: a generator update, an EMA update and a discriminator update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpgan import losses
from dpgan.config import TrainSettings
from dpgan.models.discriminators import Discriminator
from dpgan.models.ema import update_ema
from dpgan.models.generators import Generator
from dpgan.training.objectives import Terms
from dpgan.training.strategy import Engine, sum_over_workers, world_size


class MicroBatch(NamedTuple):
    """What one forward and backward pass sees of a step."""

    images: Tensor
    labels: Tensor
    share: Tensor  # of the global batch, in (0, 1]
    last: bool


class TrainingStep:
    """A generator update, an EMA update, and a discriminator update, in this order.

    Class weights, LabelMix's table and every mean are those of the global batch, however it is shared over workers
    and micro-batches. BatchNorm takes the statistics of a micro-batch, over all workers; its running statistics and
    spectral norm's vectors advance once a micro-batch.
    """

    def __init__(
        self,
        generator_engine: Engine,
        discriminator_engine: Engine,
        generator: Generator,
        discriminator: Discriminator,
        average: Generator,
        settings: TrainSettings,
        void: Tensor,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        self.generator_engine, self.discriminator_engine = generator_engine, discriminator_engine
        self.generator, self.discriminator, self.average = generator, discriminator, average
        self.settings, self.void, self.autocast = settings, void, autocast
        self.trainable = [p for p in discriminator.parameters() if p.requires_grad]

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        noise: Callable[[int], Tensor],
        mixed_classes: Tensor,
        progress: float,
        sizes: Sequence[int] | None = None,
        shift: tuple[int, int] = (0, 0),
    ) -> Terms:
        """One step on this worker's share of the global batch, in micro-batches of `sizes` samples (None: in one).

        `noise(draw)` gives [B, Z] for the share; `progress` in [0, 1] sets the rates; `shift` is the perceptual
        loss's. Workers may hold different numbers of samples, and all cut them into the same number of micro-batches.

        Returns the loss terms, weighted, detached: this worker's part of each mean over the global batch, so that
        they add up over the workers.
        """
        self._set_rates(progress)
        sizes = sizes or [len(labels)]
        counts = sum_over_workers(losses.class_counts(labels, len(self.void)))
        class_weights = losses.class_weights(counts, self.void)
        # Every loss is a mean over images of one size: the mean over the global batch weights them by their pixels.
        parts = [
            MicroBatch(x, y, y.numel() / counts.sum(), number == len(sizes))
            for number, (x, y) in enumerate(zip(images.split(sizes), labels.split(sizes), strict=True), start=1)
        ]
        terms: Terms = {}

        self._train_discriminator(False)  # the generator's loss needs no gradient of its weights
        fakes = []
        for part, z in zip(parts, noise(0).split(sizes), strict=True):
            with self.autocast():
                total, of_part, fake = self.generator_engine(
                    part.images, part.labels, z, class_weights, shift, last=part.last
                )
            self._backward(self.generator_engine, part, {"G_total": total, **of_part}, terms)
            fakes.append(fake.detach())
        moved = self.generator_engine.step()
        self._train_discriminator(True)
        if moved:
            update_ema(self.average, self.generator, self.settings.ema)

        if not self.settings.shared_fake:
            with torch.no_grad(), self.autocast():
                fakes = [self.generator(p.labels, z) for p, z in zip(parts, noise(1).split(sizes), strict=True)]
        for part, fake in zip(parts, fakes, strict=True):
            with self.autocast():
                total, of_part = self.discriminator_engine(
                    part.images, fake, part.labels, class_weights, mixed_classes, last=part.last
                )
            self._backward(self.discriminator_engine, part, {"D_total": total, **of_part}, terms)
        self.discriminator_engine.step()
        return terms

    @property
    def skipped(self) -> int:
        """Updates of either network that were left out so far."""
        return self.generator_engine.skipped + self.discriminator_engine.skipped

    @staticmethod
    def _backward(engine: Engine, part: MicroBatch, of_part: Terms, terms: Terms) -> None:
        """Differentiate the total, the first of `of_part`, as a part of the global mean; add all of them to `terms`."""
        total = next(iter(of_part.values()))
        engine.backward(total * part.share * world_size())  # the engine takes the mean over the workers
        for name, value in of_part.items():
            terms[name] = terms.get(name, 0.0) + value.detach() * part.share

    def _train_discriminator(self, on: bool) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(on)

    def _set_rates(self, progress: float) -> None:
        s = self.settings
        scale = rate_scale(progress, s)
        for engine, rate in (
            (self.generator_engine, s.lr_generator),
            (self.discriminator_engine, s.lr_discriminator),
        ):
            for group in engine.optimizer.param_groups:
                group["lr"] = rate * scale


def rate_scale(progress: float, settings: TrainSettings) -> float:
    """The factor on both learning rates at `progress` in [0, 1] of the run.

    It rises linearly over the first `warmup_images`, is 1 until `decay_from`, and then falls linearly to 0.
    """
    s = settings
    rise = min(1.0, (progress * s.images + s.batch) / s.warmup_images) if s.warmup_images else 1.0
    fall = 1.0 if progress < s.decay_from else (1.0 - progress) / max(1.0 - s.decay_from, 1e-9)
    return min(rise, fall)

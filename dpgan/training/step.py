"""One training step: a generator update, an EMA update and a discriminator update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpgan import losses
from dpgan.config import TrainSettings
from dpgan.models.discriminators import Discriminator
from dpgan.models.ema import update_ema
from dpgan.models.generators import Generator
from dpgan.training.objectives import Terms
from dpgan.training.strategy import Engine, sum_over_workers


class TrainingStep:
    """A generator update, an EMA update, and a discriminator update, in this order."""

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
    ) -> Terms:
        """One step on this worker's share. `noise(draw)` gives [B, Z]; `progress` in [0, 1] sets the rates.

        Returns the loss terms of this worker, weighted, detached.
        """
        self._set_rates(progress)
        counts = sum_over_workers(losses.class_counts(labels, len(self.void)))
        class_weights = losses.class_weights(counts, self.void)

        self._train_discriminator(False)  # the generator's loss needs no gradient of its weights
        with self.autocast():
            total_g, terms_g, fake = self.generator_engine(images, labels, noise(0), class_weights)
        self.generator_engine.update(total_g)
        self._train_discriminator(True)
        update_ema(self.average, self.generator, self.settings.ema)

        with self.autocast():
            if self.settings.shared_fake:
                fake = fake.detach()
            else:
                with torch.no_grad():
                    fake = self.generator(labels, noise(1))
            total_d, terms_d = self.discriminator_engine(images, fake, labels, class_weights, mixed_classes)
        self.discriminator_engine.update(total_d)
        terms = {"G_total": total_g, **terms_g, "D_total": total_d, **terms_d}
        return {name: value.detach() for name, value in terms.items()}

    def _train_discriminator(self, on: bool) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(on)

    def _set_rates(self, progress: float) -> None:
        """Constant rates until `decay_from` of the run, then linear to 0."""
        s = self.settings
        scale = 1.0 if progress < s.decay_from else (1.0 - progress) / max(1.0 - s.decay_from, 1e-9)
        for engine, rate in (
            (self.generator_engine, s.lr_generator),
            (self.discriminator_engine, s.lr_discriminator),
        ):
            for group in engine.optimizer.param_groups:
                group["lr"] = rate * scale

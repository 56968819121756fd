"""One training step of DP-GAN: the losses of equations 3 to 9, and the two updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpgan import losses
from dpgan.config import LossWeights, TrainSettings
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.ema import update_ema
from dpgan.models.generators import DPGenerator
from dpgan.models.perceptual import PerceptualLoss
from dpgan.training.strategy import Engine, sum_over_workers

Terms = dict[str, Tensor]


class GeneratorLoss(nn.Module):
    """Equation 7, and the terms beside the paper's. Trains the generator; the others are only looked through."""

    def __init__(
        self,
        generator: DPGenerator,
        discriminator: DPDiscriminator,
        perceptual: PerceptualLoss | None,
        weights: LossWeights,
        feature_matching: losses.FeatureMatching,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.frozen = (
            discriminator,
            perceptual,
        )  # a tuple: not submodules, so not trained and not synchronised
        self.weights, self.feature_matching = weights, feature_matching

    def forward(
        self, images: Tensor, labels: Tensor, noise: Tensor, class_weights: Tensor
    ) -> tuple[Tensor, Terms, Tensor]:
        """Images [B,3,H,W], labels [B,H,W], noise [B,Z], class weights [C] -> total, its terms, the fake images."""
        discriminator, perceptual = self.frozen
        w, terms = self.weights, {}
        fake = self.generator(labels, noise)
        out = discriminator(fake, heads=w.patch > 0)
        if w.pixel:
            terms["G_pixel"] = w.pixel * losses.segmentation_loss(out.logits, labels, class_weights)
        if w.patch:
            terms["G_patch"] = w.patch * losses.patch_loss_generator(out.patches)
        if w.feature:
            with torch.no_grad():
                real = discriminator(images, heads=False).features
            terms["G_feature"] = w.feature * losses.feature_matching_loss(out.features, real, self.feature_matching)
        if w.perceptual and perceptual is not None:
            terms["G_perceptual"] = w.perceptual * perceptual(fake, images)
        if w.l1:
            terms["G_l1"] = w.l1 * nn.functional.l1_loss(fake.float(), images)
        return sum(terms.values(), torch.zeros((), device=images.device)), terms, fake


class DiscriminatorLoss(nn.Module):
    """L_pixel + L_ms + lambda_LM L_LM of equation 9. Trains the discriminator."""

    def __init__(self, discriminator: DPDiscriminator, weights: LossWeights) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.weights = weights

    def forward(
        self, images: Tensor, fake: Tensor, labels: Tensor, class_weights: Tensor, mixed_classes: Tensor
    ) -> tuple[Tensor, Terms]:
        """Real and fake images [B,3,H,W], labels [B,H,W], class weights [C], LabelMix draws bool [C]."""
        w, terms = self.weights, {}
        heads = w.patch > 0
        on_fake = self.discriminator(fake, heads=heads)
        on_real = self.discriminator(images, heads=heads)
        if w.pixel:
            terms["D_pixel_real"] = w.pixel * losses.segmentation_loss(on_real.logits, labels, class_weights)
            terms["D_pixel_fake"] = w.pixel * losses.fake_loss(on_fake.logits)
        if w.patch:
            terms["D_patch"] = w.patch * losses.patch_loss_discriminator(on_real.patches, on_fake.patches)
        if w.labelmix:
            mask = losses.labelmix_mask(labels, mixed_classes)
            on_mixed = self.discriminator(losses.labelmix(images, fake, mask), heads=False)
            terms["D_labelmix"] = w.labelmix * losses.labelmix_loss(
                on_mixed.logits, on_real.logits, on_fake.logits, mask
            )
        return sum(terms.values(), torch.zeros((), device=images.device)), terms


class TrainingStep:
    """A generator update, an EMA update, and a discriminator update, in this order."""

    def __init__(
        self,
        generator_engine: Engine,
        discriminator_engine: Engine,
        generator: DPGenerator,
        discriminator: DPDiscriminator,
        average: DPGenerator,
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

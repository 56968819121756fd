"""What each network minimises: equations 3 to 9, and the terms beside the paper's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpgan import losses
from dpgan.config import LossWeights
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.generators import DPGenerator
from dpgan.models.perceptual import PerceptualLoss

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

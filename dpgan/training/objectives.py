"""What each network minimises: equations 3 to 9, and the terms beside the paper's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpgan import losses
from dpgan.config import TrainSettings
from dpgan.models.discriminators import Discriminator
from dpgan.models.generators import Generator
from dpgan.models.perceptual import PerceptualLoss

Terms = dict[str, Tensor]


class GeneratorLoss(nn.Module):
    """Equation 7, and the terms beside the paper's. Trains the generator; the others are only looked through."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        perceptual: PerceptualLoss | None,
        settings: TrainSettings,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.frozen = discriminator, perceptual  # a tuple: not submodules, so not trained and not synchronised
        self.settings = settings

    def forward(
        self, images: Tensor, labels: Tensor, noise: Tensor, class_weights: Tensor
    ) -> tuple[Tensor, Terms, Tensor]:
        """Images [B,3,H,W], labels [B,H,W], noise [B,Z], class weights [C] -> total, its terms, the fake images."""
        discriminator, perceptual = self.frozen
        s, w, terms = self.settings, self.settings.losses, {}
        fake = self.generator(labels, noise)
        out = discriminator(fake, labels, heads=w.patch > 0)
        if w.pixel:
            terms["G_pixel"] = w.pixel * losses.segmentation_loss(out.logits, labels, class_weights)
        if out.patches:
            patch = w.patch * losses.patch_loss_generator(out.patches, clamp=s.patch_clamp)
            terms["G_patch"] = patch.detach() if s.patch_gradient == "released" else patch
        if w.feature and out.features:
            with torch.no_grad():
                real = discriminator(images, labels, heads=False).features
            distance = losses.feature_matching_loss(out.features, real, s.feature_matching, discriminator.scales)
            terms["G_feature"] = w.feature * distance
        if w.perceptual and perceptual is not None:
            terms["G_perceptual"] = w.perceptual * perceptual(fake, images)
        if w.l1:
            terms["G_l1"] = w.l1 * nn.functional.l1_loss(fake.float(), images)
        return sum(terms.values(), torch.zeros((), device=images.device)), terms, fake


class DiscriminatorLoss(nn.Module):
    """L_pixel + L_ms + lambda_LM L_LM of equation 9. Trains the discriminator."""

    def __init__(self, discriminator: Discriminator, settings: TrainSettings) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.settings = settings
        if settings.patch_gradient == "released" or not settings.losses.patch:
            discriminator.heads.requires_grad_(False)  # nothing trains them

    def forward(
        self, images: Tensor, fake: Tensor, labels: Tensor, class_weights: Tensor, mixed_classes: Tensor
    ) -> tuple[Tensor, Terms]:
        """Real and fake images [B,3,H,W], labels [B,H,W], class weights [C], LabelMix draws bool [C]."""
        s, w, terms = self.settings, self.settings.losses, {}
        on_fake = self.discriminator(fake, labels, heads=w.patch > 0)
        on_real = self.discriminator(images, labels, heads=w.patch > 0)
        if w.pixel:
            terms["D_pixel_real"] = w.pixel * losses.segmentation_loss(on_real.logits, labels, class_weights)
            terms["D_pixel_fake"] = w.pixel * losses.fake_loss(on_fake.logits)
        if on_real.patches:
            patch = w.patch * losses.patch_loss_discriminator(on_real.patches, on_fake.patches)
            terms["D_patch"] = patch.detach() if s.patch_gradient == "released" else patch
        if w.labelmix:
            mask = losses.labelmix_mask(labels, mixed_classes)
            on_mixed = self.discriminator(losses.labelmix(images, fake, mask), labels, heads=False)
            terms["D_labelmix"] = w.labelmix * losses.labelmix_loss(
                on_mixed.logits, on_real.logits, on_fake.logits, mask
            )
        return sum(terms.values(), torch.zeros((), device=images.device)), terms

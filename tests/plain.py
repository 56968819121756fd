"""DP-GAN layer by layer, as the tables of the paper say: nothing merged, folded, skipped or reused.

What the networks of `dpgan` are tested against and measured against: it costs what the released code costs (533 GFLOP
for a photo of 256x512, 5024 for an iteration). Its parameters have the names of the released checkpoints, so
`official_views` of ours is its state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from dpgan.config import LossWeights
from dpgan.models.discriminators import DiscriminatorOutput


class PlainNorm(nn.Module):
    """BatchNorm, modulated by gamma and beta (eq. 1), each a convolution over the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_gamma = nn.Conv2d(condition, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(condition, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.first_norm(x) * (1 + self.mlp_gamma(condition)) + self.mlp_beta(condition)


class PlainBlock(nn.Module):
    """SPADE residual block (table 8)."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = PlainNorm(inputs, condition), PlainNorm(outputs, condition)
        self.conv_0 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.learned_shortcut = inputs != outputs
        if self.learned_shortcut:
            self.norm_s = PlainNorm(inputs, condition)
            self.conv_s = spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        h = self.conv_0(F.leaky_relu(self.norm_0(x, condition), 0.2))
        return self.conv_1(F.leaky_relu(self.norm_1(h, condition), 0.2)) + shortcut


class PlainGenerator(nn.Module):
    """Tables 6 and 8: one-hot labels [B, C, H, W] and noise [B, Z, H, W] -> photos [B, 3, H, W]."""

    def __init__(self, num_classes: int, noise_channels: int = 64, width: int = 64, pyramid_width: int = 64) -> None:
        super().__init__()
        inputs, s = noise_channels + num_classes, pyramid_width
        convolutions = [nn.Conv2d(inputs, s // 2, 3, padding=1), nn.Conv2d(s // 2, s, 3, padding=1)]
        convolutions += [nn.Conv2d(s, s, 3, stride=2, padding=1) for _ in range(5)]
        self.seg_pyrmid = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()) for conv in convolutions
        )
        channels = [width * m for m in (16, 16, 16, 8, 4, 2, 1)]
        self.fc = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.body = nn.ModuleList(PlainBlock(i, o, 2 * s) for i, o in pairwise(channels))
        self.conv_img = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, one_hot: Tensor, noise: Tensor) -> Tensor:
        z_y = torch.cat([noise, one_hot], dim=1)
        pyramid, s_i = [], z_y
        for step in self.seg_pyrmid:
            s_i = step(s_i)
            pyramid.append(s_i)
        s_0 = pyramid[-1]
        x = self.fc(F.interpolate(z_y, size=s_0.shape[2:], mode="nearest"))
        for i, block in enumerate(self.body):
            if i > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            s_i = pyramid[-1 - i]
            x = block(x, torch.cat([F.interpolate(s_0, size=s_i.shape[2:], mode="bilinear"), s_i], dim=1))
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class PlainResBlock(nn.Module):
    """Residual block of the discriminator (table 7): "down" halves the size, "up" doubles it."""

    def __init__(self, inputs: int, outputs: int, direction: str, first: bool = False) -> None:
        super().__init__()
        self.down = direction == "down"
        before: list[nn.Module] = [] if first else [nn.LeakyReLU(0.2)]
        before += [] if self.down else [nn.Upsample(scale_factor=2)]
        self.conv1 = nn.Sequential(*before, spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1)))
        self.conv2 = nn.Sequential(nn.LeakyReLU(0.2), spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.learned_shortcut = inputs != outputs
        if self.learned_shortcut:
            self.conv_s = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x))
        shortcut = x if self.down else F.interpolate(x, scale_factor=2.0)
        shortcut = self.conv_s(shortcut) if self.learned_shortcut else shortcut
        return F.avg_pool2d(h, 2) + F.avg_pool2d(shortcut, 2) if self.down else h + shortcut


class PlainDiscriminator(nn.Module):
    """Table 7: images [B, 3, H, W], H and W multiples of 64 -> logits, patch scores, features of the decoder."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        down = [3, *(width * m for m in (2, 2, 4, 4, 8, 8))]
        up = [width * m for m in (8, 4, 4, 2, 2, 1)]
        up_inputs = [down[6], *(u + d for u, d in zip(up, reversed(down[1:6]), strict=False))]
        self.body_down = nn.ModuleList(PlainResBlock(down[i], down[i + 1], "down", first=i == 0) for i in range(6))
        self.body_up = nn.ModuleList(PlainResBlock(i, o, "up") for i, o in zip(up_inputs, up, strict=True))
        self.layer_up_last = nn.Conv2d(width, num_classes + 1, 1)
        self.dis = nn.ModuleList(self._head(channels, width) for channels in (down[4], down[6]))

    @staticmethod
    def _head(inputs: int, channels: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        encoded, x = [], images
        for block in self.body_down:
            x = block(x)
            encoded.append(x)
        patches = [head(encoded[i]) for head, i in zip(self.dis, (3, 5), strict=True)]
        x = self.body_up[0](encoded[5])
        features = []
        for block, skip in zip(self.body_up[1:], reversed(encoded[:5]), strict=True):
            x = block(torch.cat([skip, x], dim=1))
            features.append(x)
        return DiscriminatorOutput(self.layer_up_last(x), patches, features)


def plain_weight_map(one_hot: Tensor) -> Tensor:
    """Eq. 4: the weight of every pixel [B, H, W]; class 0 is void."""
    counts = one_hot.sum(dim=(0, 2, 3))
    present = counts > 0
    present[0] = False
    weights = torch.where(present, one_hot[:, 0].numel() / (present.sum() * counts), 0.0)
    return (one_hot * weights[None, :, None, None]).sum(dim=1)


def plain_segmentation_loss(logits: Tensor, one_hot: Tensor) -> Tensor:
    """First term of eq. 3: cross-entropy with the class of each pixel, weighted."""
    targets = F.pad(one_hot, (0, 0, 0, 0, 1, 0))  # the fake class is the first
    return -((F.log_softmax(logits, dim=1) * targets).sum(dim=1) * plain_weight_map(one_hot)).mean()


def plain_fake_loss(logits: Tensor) -> Tensor:
    """Second term of eq. 3: cross-entropy with the fake class."""
    return -F.log_softmax(logits, dim=1)[:, 0].mean()


def plain_mix(real: Tensor, fake: Tensor, one_hot: Tensor, mixed_classes: Tensor) -> Tensor:
    """LabelMix: the real tensor where the class of the pixel was drawn, class by class."""
    mask = torch.zeros_like(one_hot[:, :1])
    for number, drawn in enumerate(mixed_classes.tolist()):
        if drawn:
            mask += one_hot[:, number : number + 1]
    return mask * real + (1 - mask) * fake


class PlainTraining:
    """Equations 3 to 9 with alternating updates; the features are matched by a mean over the layers."""

    def __init__(
        self, generator: PlainGenerator, discriminator: PlainDiscriminator, average: PlainGenerator,
        weights: LossWeights, rates: tuple[float, float], betas: tuple[float, float], decay: float,
    ) -> None:  # fmt: skip
        self.generator, self.discriminator, self.average = generator, discriminator, average
        self.weights, self.decay = weights, decay
        self.optimizers = [
            torch.optim.Adam(module.parameters(), lr=rate, betas=betas, foreach=False)
            for module, rate in zip((generator, discriminator), rates, strict=True)
        ]

    def step(
        self, images: Tensor, one_hot: Tensor, noises: tuple[Tensor, Tensor], mixed_classes: Tensor, dtype: torch.dtype
    ) -> Mapping[str, float]:
        """A generator, an EMA and a discriminator update; noises [B, Z, H, W], one for each network's update."""
        autocast = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with autocast:
            terms = self._generator_terms(self.generator(one_hot, noises[0]).float(), images, one_hot)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizers[0].step()
        self._average()

        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with torch.no_grad(), autocast:
            fake = self.generator(one_hot, noises[1]).float()
        with autocast:
            ours = self._discriminator_terms(fake, images, one_hot, mixed_classes)
        torch.stack(list(ours.values())).sum().backward()
        self.optimizers[1].step()
        return {name: value.item() for name, value in (terms | ours).items()}

    def _generator_terms(self, fake: Tensor, images: Tensor, one_hot: Tensor) -> dict[str, Tensor]:
        """Eq. 7; for nothing, the real images' features have a graph and the discriminator gets gradients."""
        w, out, real = self.weights, self.discriminator(fake), self.discriminator(images)
        distances = [F.mse_loss(f.float(), r.float()) for f, r in zip(out.features, real.features, strict=True)]
        return {
            "G_pixel": w.pixel * plain_segmentation_loss(out.logits.float(), one_hot),
            "G_patch": w.patch * torch.stack([-patch.float().mean() for patch in out.patches]).mean(),
            "G_feature": w.feature * torch.stack(distances).mean(),
        }

    def _discriminator_terms(
        self, fake: Tensor, images: Tensor, one_hot: Tensor, mixed_classes: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 9."""
        w, on_fake, on_real = self.weights, self.discriminator(fake), self.discriminator(images)
        hinges = [
            F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
            for real, fake in zip(on_real.patches, on_fake.patches, strict=True)
        ]
        on_mixed = self.discriminator(plain_mix(images, fake, one_hot, mixed_classes))
        real, other = on_real.logits.float(), on_fake.logits.float()
        return {
            "D_pixel_real": w.pixel * plain_segmentation_loss(real, one_hot),
            "D_pixel_fake": w.pixel * plain_fake_loss(other),
            "D_patch": w.patch * torch.stack(hinges).mean(),
            "D_labelmix": w.labelmix
            * F.mse_loss(on_mixed.logits.float(), plain_mix(real, other, one_hot, mixed_classes)),
        }

    @torch.no_grad()
    def _average(self) -> None:
        """EMA of the generator, tensor by tensor."""
        for average, tensor in zip(
            self.average.state_dict().values(), self.generator.state_dict().values(), strict=True
        ):
            average.copy_(self.decay * average + (1 - self.decay) * tensor if average.is_floating_point() else tensor)

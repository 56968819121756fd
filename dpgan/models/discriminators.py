"""The scale-enhancement discriminator (section 3.2, table 7): a U-Net that labels pixels, with patch heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan.models.layers import BatchNorm, initialise, spectral_norm


class DiscriminatorOutput(NamedTuple):
    """What the losses need of one forward pass."""

    logits: Tensor  # [B, C+1, H, W]: channel 0 = fake, channel c+1 = class c
    patches: list[Tensor]  # patch scores [B, 1, h, w] after down blocks 4 and 6; empty without heads
    features: list[Tensor]  # outputs of up blocks 2..6, [B, c, H/2^k, W/2^k], k = 4..0


def convolution(in_channels: int, out_channels: int, kernel_size: int, normalised: bool) -> nn.Conv2d:
    """A convolution that keeps the size, spectral-normalised if asked for."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return spectral_norm(conv) if normalised else conv


class ResBlock(nn.Module):
    """Residual block: two 3x3 convolutions beside a 1x1 shortcut, which is there where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, normalised: bool) -> None:
        super().__init__()
        self.conv_1 = convolution(in_channels, out_channels, 3, normalised)
        self.conv_2 = convolution(out_channels, out_channels, 3, normalised)
        self.conv_s: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv_s = convolution(in_channels, out_channels, 1, normalised)


class DownBlock(ResBlock):
    """ResBlock-Down: [B, I, H, W] -> [B, O, H/2, W/2]. `first`: the input is an image, not to be rectified."""

    def __init__(self, in_channels: int, out_channels: int, normalised: bool, first: bool) -> None:
        super().__init__(in_channels, out_channels, normalised)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(x if self.first else F.leaky_relu(x, 0.2))
        h = F.avg_pool2d(self.conv_2(F.leaky_relu(h, 0.2)), 2)
        return h + self.conv_s(F.avg_pool2d(x, 2))  # a 1x1 convolution and the pooling commute


class UpBlock(ResBlock):
    """ResBlock-Up: [B, I, H, W] -> [B, O, 2H, 2W], nearest upsampling."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(F.interpolate(F.leaky_relu(x, 0.2), scale_factor=2.0))
        h = self.conv_2(F.leaky_relu(h, 0.2))
        return h + F.interpolate(self.conv_s(x), scale_factor=2.0)  # as above


class PatchHead(nn.Sequential):
    """Patch scores of an encoder feature map: [B, I, h, w] -> [B, 1, ceil(h/2), ceil(w/2)]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        blocks: list[nn.Module] = []
        for _ in range(3):
            blocks += [nn.Conv2d(channels, channels, 3, padding=1), BatchNorm(channels), nn.LeakyReLU(0.2)]
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *blocks,
            nn.Conv2d(channels, 1, 3, padding=1),
        )


class DPDiscriminator(nn.Module):
    """Image -> class or 'fake' of every pixel. At width 64 and 35 classes: 22.92 M parameters."""

    def __init__(self, num_classes: int, width: int = 64, spectral_norm: bool = True) -> None:
        super().__init__()
        down = [3, *(width * m for m in (2, 2, 4, 4, 8, 8))]
        up = [width * m for m in (8, 4, 4, 2, 2, 1)]
        self.down = nn.ModuleList(DownBlock(down[i], down[i + 1], spectral_norm, first=i == 0) for i in range(6))
        up_inputs = [down[6], *(u + d for u, d in zip(up, reversed(down[1:6]), strict=False))]
        self.up = nn.ModuleList(UpBlock(i, o, spectral_norm) for i, o in zip(up_inputs, up, strict=True))
        self.to_logits = nn.Conv2d(width, num_classes + 1, 1)
        self.heads = nn.ModuleList([PatchHead(down[4], width), PatchHead(down[6], width)])
        self.apply(initialise)
        if not spectral_norm:  # which makes the scale irrelevant; without it, gain 0.02 leaves no signal to learn from
            for conv in (m for m in [*self.down.modules(), *self.up.modules()] if isinstance(m, nn.Conv2d)):
                nn.init.xavier_normal_(conv.weight)

    def forward(self, images: Tensor, heads: bool = True) -> DiscriminatorOutput:
        """images: float [B, 3, H, W] in [-1, 1]; H and W are multiples of 32. `heads=False` leaves the patches out."""
        encoded = []
        x = images
        for block in self.down:
            height, width = x.shape[2:]
            # Table 7 halves six times: where a side is an odd multiple of 32, the last step repeats its border.
            x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else x
            x = block(x)
            encoded.append(x)
        patches = [self.heads[0](encoded[3]), self.heads[1](encoded[5])] if heads else []

        decoded = [self.up[0](encoded[5])]
        for block, skip in zip(self.up[1:], reversed(encoded[:5]), strict=True):
            cropped = decoded[-1][:, :, : skip.shape[2], : skip.shape[3]]
            decoded.append(block(torch.cat([skip, cropped], dim=1)))
        return DiscriminatorOutput(self.to_logits(decoded[-1]), patches, decoded[1:])

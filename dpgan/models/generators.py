"""The dual-pyramid generator (section 3.1, tables 6 and 8). Imports torch and `layers` only: shipped with the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import INIT_GAIN, BatchNorm, initialise, spectral_norm

LATENT_STRIDE = 32  # five 2x steps lie between s_0 and the image


class ConvBlock(nn.Module):
    """Conv-BatchNorm-ReLU, a step of the conditioning pyramid (table 6)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm(conv.out_channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(*inputs)))


def upsample_kernels(size: int, upsampled: int, like: Tensor) -> Tensor:
    """The matrices [3, upsampled, size] that upsample a line bilinearly, then shift it by -1, 0 and 1 with zeros."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    matrix = F.interpolate(identity[None], size=upsampled, mode="linear", align_corners=False)[0].T
    return F.pad(matrix, (0, 0, 1, 1)).unfold(0, upsampled, 1).movedim(-1, 1)


def conv3x3_upsampled(x: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """`conv3x3(upsample_bilinear(x, size))` with zero padding, computed at the resolution of `x`.

    Upsampling and the taps of the kernel act on rows and columns separately, so channels are mixed where there are
    few pixels, and small dense matrices do the rest: the same numbers for some 5% of the operations.
    x [B, I, h, w], weight [O, I, 3, 3] -> [B, O, *size].
    """
    rows = upsample_kernels(x.shape[2], size[0], weight)
    columns = upsample_kernels(x.shape[3], size[1], weight)
    mixed = torch.einsum("bihw,oikl->bklhwo", x, weight)
    tall = torch.einsum("bklhwo,kyh->blywo", mixed, rows)
    return torch.einsum("blywo,lxw->byxo", tall, columns).permute(0, 3, 1, 2)


class Modulation(nn.Conv2d):
    """The gammas and betas of a block (eq. 2) as one convolution over concat(Up(s_0), s_i)."""

    def __init__(self, pyramid_width: int, channels: list[int]) -> None:
        super().__init__(2 * pyramid_width, 2 * sum(channels), 3, padding=1)
        self.sizes = [c for c in channels for _ in "gb"]  # a gamma and a beta for every tensor that is modulated

    def initialise(self) -> None:
        """Draw every gamma and beta as a convolution of its own, whose fan-out xavier then sees."""
        for part in self.weight.detach().split(self.sizes):
            nn.init.xavier_normal_(part, gain=INIT_GAIN)

    def forward(self, s_0: Tensor, s_i: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        weight_0, weight_i = self.weight.chunk(2, dim=1)
        output = F.conv2d(s_i, weight_i, self.bias, padding=1) + conv3x3_upsampled(s_0, weight_0, s_i.shape[2:])
        return output.split(self.sizes, dim=1)


class SpadeBlock(nn.Module):
    """SPADE residual block (table 8)."""

    def __init__(self, in_channels: int, out_channels: int, pyramid_width: int) -> None:
        super().__init__()
        self.learned_shortcut = in_channels != out_channels
        self.norm_0 = BatchNorm(in_channels, affine=False)
        self.norm_1 = BatchNorm(out_channels, affine=False)
        self.conv_0 = spectral_norm(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        if self.learned_shortcut:
            self.conv_s = spectral_norm(nn.Conv2d(in_channels, out_channels, 1, bias=False))
        modulated = [in_channels, out_channels] + [in_channels] * self.learned_shortcut
        self.modulation = Modulation(pyramid_width, modulated)

    def forward(self, x: Tensor, s_0: Tensor, s_i: Tensor) -> Tensor:
        gamma_0, beta_0, gamma_1, beta_1, *shortcut = self.modulation(s_0, s_i)
        normalised = self.norm_0(x)
        h = self.conv_0(F.leaky_relu(modulate(normalised, gamma_0, beta_0), 0.2))
        h = self.conv_1(F.leaky_relu(modulate(self.norm_1(h), gamma_1, beta_1), 0.2))
        return h + (self.conv_s(modulate(normalised, *shortcut)) if self.learned_shortcut else x)


def modulate(normalised: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Eq. 1, gamma counted from 1 as in SPADE."""
    return normalised * (1 + gamma) + beta


class LabelConv(nn.Conv2d):
    """3x3 convolution over z_y = concat(noise, one-hot labels) of table 6, which is never built at full size."""

    def forward(self, one_hot: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """one_hot [B, C, H, W]; noise [B, Z] or [B, Z, H, W] -> [B, O, H, W]."""
        weight_z, weight_y = self.weight.split([noise.shape[1], one_hot.shape[1]], dim=1)
        response = F.conv2d(one_hot, weight_y, self.bias, padding=1)
        if noise.dim() == 4:
            return response + F.conv2d(noise, weight_z, padding=1)
        # The response to a constant differs at the zero-padded border only: a 3x3 image holds all of its values.
        values = F.conv2d(spread(noise, (3, 3)), weight_z, padding=1)
        rows, columns = (border_index(size, noise.device) for size in one_hot.shape[2:])
        return response + values[:, :, rows[:, None], columns]


def border_index(size: int, device: torch.device) -> Tensor:
    """0 at the first of `size` > 1 positions, 2 at the last, 1 between."""
    positions = torch.arange(size, device=device)
    return 1 - (positions == 0).long() + (positions == size - 1).long()


def spread(noise: Tensor, size: Sequence[int]) -> Tensor:
    """One vector an image [B, Z] as a constant map [B, Z, *size]."""
    return noise[:, :, None, None].expand(-1, -1, *size)


class DPGenerator(nn.Module):
    """Label map and noise -> photo. At the paper's widths and 35 classes: 69.51 M parameters.

    `width`: channels of the last SPADE block; `pyramid_width`: channels of s_0 .. s_5. Both are 64 in the paper.
    """

    def __init__(self, num_classes: int, noise_channels: int = 64, width: int = 64, pyramid_width: int = 64) -> None:
        super().__init__()
        self.num_classes, self.noise_channels = num_classes, noise_channels
        inputs, s = noise_channels + num_classes, pyramid_width
        first = [LabelConv(inputs, s // 2, 3, padding=1), nn.Conv2d(s // 2, s, 3, padding=1)]
        strided = [nn.Conv2d(s, s, 3, stride=2, padding=1) for _ in range(5)]
        self.pyramid = nn.ModuleList(ConvBlock(conv) for conv in first + strided)
        channels = [width * m for m in (16, 16, 16, 8, 4, 2, 1)]
        self.stem = nn.Conv2d(inputs, channels[0], 3, padding=1)
        blocks = [SpadeBlock(i, o, pyramid_width) for i, o in pairwise(channels)]
        self.blocks = nn.ModuleList(blocks)
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.apply(initialise)
        for block in blocks:
            block.modulation.initialise()

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Photos fp32 [B, 3, H, W] in (-1, 1); H and W are multiples of 32.

        labels: class indices, uint8 or int64 [B, H, W]; noise: float [B, Z], one vector an image as in the released
        code, or [B, Z, H, W] as in the paper.
        """
        one_hot = noise.new_zeros(labels.shape[0], self.num_classes, *labels.shape[1:])
        one_hot.scatter_(1, labels.long().unsqueeze(1), 1.0)

        s_i = self.pyramid[0](one_hot, noise)
        pyramid = []  # s_5 .. s_0
        for step in self.pyramid[1:]:
            s_i = step(s_i)
            pyramid.append(s_i)

        coarse = (..., slice(None, None, LATENT_STRIDE), slice(None, None, LATENT_STRIDE))  # nearest
        y = one_hot[coarse]
        z = noise[coarse] if noise.dim() == 4 else spread(noise, y.shape[2:])
        x = self.stem(torch.cat([z, y], dim=1))
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, s_0=pyramid[-1], s_i=pyramid[-1 - i])
        return torch.tanh(self.to_rgb(F.leaky_relu(x, 0.2)).float())

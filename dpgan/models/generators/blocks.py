"""What the generators are made of: SPADE residual blocks, and convolutions over label maps and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import INIT_GAIN, BatchNorm, spectral_norm

LATENT_STRIDE = 32  # five 2x steps lie between the coarsest map and the image


class Generator(nn.Module):
    """Label map and noise -> photo: what every generator here is to the rest of the package.

    Called with labels, class indices, uint8 or int64 [B, H, W], H and W multiples of 32; and noise, float [B, Z],
    one vector an image as in the released codes, or [B, Z, H, W] as in the papers. Returns photos, fp32 [B, 3, H, W]
    in (-1, 1).
    """

    num_classes: int
    noise_channels: int  # Z; 0 where noise is not used
    arguments: dict[str, Any]  # of the `build_generator` that made it

    def one_hot(self, labels: Tensor, like: Tensor) -> Tensor:
        """[B, H, W] -> [B, C, H, W] in the dtype of `like`."""
        one_hot = like.new_zeros(labels.shape[0], self.num_classes, *labels.shape[1:])
        return one_hot.scatter_(1, labels.long().unsqueeze(1), 1.0)


class SpadeBlock(nn.Module):
    """SPADE residual block (table 8). `modulation(channels)` makes what gives the gammas and betas of each norm."""

    def __init__(self, in_channels: int, out_channels: int, modulation: Callable[[list[int]], nn.Module]) -> None:
        super().__init__()
        self.learned_shortcut = in_channels != out_channels
        self.norm_0 = BatchNorm(in_channels, affine=False)
        self.norm_1 = BatchNorm(out_channels, affine=False)
        self.conv_0 = spectral_norm(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        if self.learned_shortcut:
            self.conv_s = spectral_norm(nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.modulation = modulation([in_channels, out_channels] + [in_channels] * self.learned_shortcut)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        gamma_0, beta_0, gamma_1, beta_1, *shortcut = self.modulation(*condition)
        normalised = self.norm_0(x)  # by the shortcut too: the same statistics
        h = self.conv_0(F.leaky_relu(modulate(normalised, gamma_0, beta_0), 0.2))
        h = self.conv_1(F.leaky_relu(modulate(self.norm_1(h), gamma_1, beta_1), 0.2))
        return h + (self.conv_s(modulate(normalised, *shortcut)) if self.learned_shortcut else x)


def modulate(normalised: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Eq. 1, gamma counted from 1 as in SPADE."""
    return normalised * (1 + gamma) + beta


def initialise_apart(conv: nn.Conv2d, sizes: list[int]) -> None:
    """Draw the parts of a merged convolution as convolutions of their own, whose fan-out xavier then sees."""
    for part in conv.weight.detach().split(sizes):
        nn.init.xavier_normal_(part, gain=INIT_GAIN)


class LabelConv(nn.Conv2d):
    """3x3 convolution over z_y = concat(noise, one-hot labels) of table 6, which is never built at full size."""

    def forward(self, one_hot: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """one_hot [B, C, H, W]; noise [B, Z] or [B, Z, H, W], Z may be 0 -> [B, O, H, W]."""
        weight_z, weight_y = self.weight.split([noise.shape[1], one_hot.shape[1]], dim=1)
        response = F.conv2d(one_hot, weight_y, self.bias, padding=1)
        if noise.shape[1] == 0:
            return response
        if noise.dim() == 2 and min(one_hot.shape[2:]) > 1:
            # The response to a constant differs at the zero-padded border only: a 3x3 image holds all of its values.
            values = F.conv2d(spread(noise, (3, 3)), weight_z, padding=1)
            rows, columns = (border_index(size, noise.device) for size in one_hot.shape[2:])
            return response + values[:, :, rows[:, None], columns]
        noise = noise if noise.dim() == 4 else spread(noise, one_hot.shape[2:])
        return response + F.conv2d(noise, weight_z, padding=1)


def border_index(size: int, device: torch.device) -> Tensor:
    """0 at the first of `size` > 1 positions, 2 at the last, 1 between."""
    positions = torch.arange(size, device=device)
    return 1 - (positions == 0).long() + (positions == size - 1).long()


def spread(noise: Tensor, size: Sequence[int]) -> Tensor:
    """One vector an image [B, Z] as a constant map [B, Z, *size]."""
    return noise[:, :, None, None].expand(-1, -1, *size)


def nearest(stride: int, *maps: Tensor) -> Iterable[Tensor]:
    """Every map [B, C, H, W] at 1/stride of its size; a noise vector [B, Z] stays as it is."""
    return (m if m.dim() == 2 else m[..., ::stride, ::stride] for m in maps)

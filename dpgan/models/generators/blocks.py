"""What the generators are made of: SPADE residual blocks, and convolutions over label maps and noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import INIT_GAIN, BatchNorm, Conv1x1, conv1x1, spectral_norm

LATENT_STRIDE = 32  # five 2x steps lie between the coarsest map and the image


class Generator(nn.Module):
    """Label map and noise -> photo: what every generator here is to the rest of the package.

    Called with labels, class indices, uint8 or int64 [B, H, W], H and W multiples of 32; and noise, float [B, Z],
    one vector an image as in the released codes, or [B, Z, H, W] as in the papers. Either may be one for a batch of the
    other. Returns photos, fp32 [B, 3, H, W] in (-1, 1).
    """

    num_classes: int
    noise_channels: int  # Z; 0 where noise is not used
    arguments: dict[str, Any]  # of the `build_generator` that made it


Kernel = tuple[Tensor, Tensor]  # [O, I, 3, 3] and bias [O] of a convolution over the condition


class Modulation(nn.Module, ABC):
    """What gives the gammas and betas of a SPADE block: a convolution each, whose kernels can be rearranged before."""

    def forward(self, kernel_s: Tensor | None, *condition: Tensor) -> list[Tensor]:
        """gamma, beta, gamma, ..., each [B, channels, H, W]; the last beta has gone through `kernel_s`."""
        *kernels, last = self.kernels()
        return self.respond([*kernels, through(kernel_s, last)], *condition)

    @abstractmethod
    def kernels(self) -> list[Kernel]:
        """Of gamma, beta, gamma, ..."""

    @abstractmethod
    def respond(self, kernels: list[Kernel], *condition: Tensor) -> list[Tensor]:
        """What the kernels give, each [B, O, H, W]."""


def modulation_kernels(conv: nn.Conv2d, sizes: Sequence[int]) -> list[Kernel]:
    """Kernels of gamma, beta, gamma, ... of `sizes` outputs each, merged in `conv`.

    In its weights gamma is counted from 1, as in SPADE's code; what these kernels give is counted from 0.
    """
    assert conv.bias is not None
    kernels = list(zip(conv.weight.split(sizes), conv.bias.split(sizes), strict=True))
    kernels[::2] = [(gamma, offset + 1) for gamma, offset in kernels[::2]]
    return kernels


def through(kernel_s: Tensor | None, kernel: Kernel) -> Kernel:
    """A 1x1 convolution `kernel_s` [P, O, 1, 1] of what `kernel` gives, as one convolution: of fewer outputs here."""
    if kernel_s is None:
        return kernel
    (weight, bias), matrix = kernel, kernel_s.flatten(1)
    return (matrix @ weight.flatten(1)).view(-1, *weight.shape[1:]), matrix @ bias


class SpadeBlock(nn.Module):
    """SPADE residual block (table 8). `modulation(channels)` makes what gives the gammas and betas of each norm."""

    norm_0: nn.Module
    norm_1: nn.Module
    modulation: Modulation

    def __init__(self, in_channels: int, out_channels: int, modulation: Callable[[list[int]], Modulation]) -> None:
        super().__init__()
        self.learned_shortcut = in_channels != out_channels
        self.norm_0 = BatchNorm(in_channels, affine=False)
        self.norm_1 = BatchNorm(out_channels, affine=False)
        self.conv_0 = spectral_norm(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        if self.learned_shortcut:
            self.conv_s = spectral_norm(Conv1x1(in_channels, out_channels, bias=False))
        self.modulation = modulation([in_channels, out_channels] + [in_channels] * self.learned_shortcut)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        kernel_s: Tensor | None = self.conv_s.weight if self.learned_shortcut else None
        gamma_0, beta_0, gamma_1, beta_1, *shortcut = self.modulation(kernel_s, *condition)
        normalised = self.norm_0(x)  # by the shortcut too: the same statistics
        h = self.conv_0(F.leaky_relu_(modulate(normalised, gamma_0, beta_0), 0.2))
        h = self.conv_1(F.leaky_relu_(modulate(self.norm_1(h), gamma_1, beta_1), 0.2))
        if kernel_s is None:
            return h.add_(x)
        gamma_s, beta_s = shortcut  # conv_s is linear, and beta_s has gone through it
        return h.add_(conv1x1(normalised * gamma_s, kernel_s)).add_(beta_s)


def modulate(normalised: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Eq. 1, in the memory of beta where no gradient is asked for. Gamma is counted from 0 here, not from 1."""
    if torch.is_grad_enabled():
        return torch.addcmul(beta, normalised, gamma)
    return beta.addcmul_(normalised, gamma)


def initialise_apart(conv: nn.Conv2d, sizes: list[int]) -> None:
    """Draw the parts of a merged convolution as convolutions of their own, whose fan-out xavier then sees."""
    for part in conv.weight.detach().split(sizes):
        nn.init.xavier_normal_(part, gain=INIT_GAIN)


class LabelConv(nn.Conv2d):
    """3x3 convolution over z_y = concat(noise, one-hot labels) of table 6, neither of which is built."""

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """labels [B, H, W]; noise [B, Z] or [B, Z, H, W], Z may be 0 -> [B, O, H, W].

        Either may be one for a batch of the other: what one map gives is computed once for many noises.
        """
        noise = noise.to(self.weight.dtype)
        weight_z, weight_y = self.weight.split([noise.shape[1], self.in_channels - noise.shape[1]], dim=1)
        assert self.bias is not None
        response = lookup(labels, weight_y) + self.bias[:, None, None]
        if noise.shape[1] == 0:
            return response
        if noise.dim() == 4:
            return response + F.conv2d(noise, weight_z, padding=1)
        # The response to a constant differs at the zero-padded border only: a 3x3 image holds all of its values.
        small = [min(size, 3) for size in labels.shape[1:]]
        values = F.conv2d(spread(noise, small), weight_z, padding=1)
        rows, columns = (border_index(size, noise.device) for size in labels.shape[1:])
        return response + values[:, :, rows[:, None], columns]


def lookup(labels: Tensor, weight: Tensor) -> Tensor:
    """`conv3x3(one_hot(labels))` with zero padding: each pixel adds nine columns of the kernel, which its labels name.

    labels [B, H, W] below C, weight [O, C, 3, 3] -> [B, O, H, W], channels last in memory.
    """
    outputs, classes = weight.shape[:2]
    columns = F.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, 1)).reshape(-1, outputs)  # [9 * (C + 1), O]: 0 for padding
    around = F.pad(labels.int(), (1, 1, 1, 1), value=classes).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    taps = torch.arange(9, dtype=torch.int32, device=labels.device) * (classes + 1)
    summed = F.embedding_bag((around + taps).flatten(0, 2), columns, mode="sum")
    return summed.view(*labels.shape, outputs).permute(0, 3, 1, 2)


def border_index(size: int, device: torch.device) -> Tensor:
    """Which position of a line of 3 behaves as each of `size`: the first, the last, and 1 between."""
    index = torch.arange(size, device=device).clamp(max=1)
    index[-1] = min(size, 3) - 1
    return index


def spread(noise: Tensor, size: Sequence[int]) -> Tensor:
    """One vector an image [B, Z] as a constant map [B, Z, *size]."""
    return noise[:, :, None, None].expand(-1, -1, *size)


def nearest(stride: int, *maps: Tensor) -> Iterable[Tensor]:
    """Every map [B, ..., H, W] at 1/stride of its size; a noise vector [B, Z] stays as it is."""
    return (m if m.dim() == 2 else m[..., ::stride, ::stride] for m in maps)

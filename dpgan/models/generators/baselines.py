"""The generators that the paper compares with: SPADE (Park et al., CVPR 2019) and OASIS (Schönfeld et al., ICLR 2021).

Both condition every norm on the label map itself, at the size of the block; OASIS concatenates the noise to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import full_precision, initialise
from .blocks import (
    LATENT_STRIDE,
    Generator,
    Kernel,
    LabelConv,
    Modulation,
    SpadeBlock,
    initialise_apart,
    modulation_kernels,
    nearest,
)


class Spade(nn.Module):
    """Gamma and beta of one norm (SPADE, figure 2): conv-ReLU over the label map, then a convolution for each."""

    def __init__(self, inputs: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.shared = LabelConv(inputs, hidden, 3, padding=1)
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def kernels(self) -> list[Kernel]:
        """Of gamma and beta."""
        return modulation_kernels(self.gamma_beta, [self.gamma_beta.out_channels // 2] * 2)

    def respond(self, kernels: list[Kernel], labels: Tensor, noise: Tensor) -> list[Tensor]:
        """What the kernels give, each [B, O, H, W]."""
        hidden = F.relu_(self.shared(labels, noise))
        return [F.conv2d(hidden, weight, bias, padding=1) for weight, bias in kernels]


class LabelModulation(Modulation, nn.ModuleList):
    """The gammas and betas of a block, each norm's from layers of its own."""

    def __init__(self, inputs: int, hidden: int, channels: list[int]) -> None:
        super().__init__(Spade(inputs, hidden, c) for c in channels)

    def kernels(self) -> list[Kernel]:
        return [kernel for spade in self.spades() for kernel in spade.kernels()]

    def spades(self) -> Iterator[Spade]:
        """One a norm."""
        return cast("Iterator[Spade]", self.children())

    def respond(self, kernels: list[Kernel], *condition: Tensor) -> list[Tensor]:
        pairs = (kernels[i : i + 2] for i in range(0, len(kernels), 2))
        return [
            part for spade, pair in zip(self.spades(), pairs, strict=True) for part in spade.respond(pair, *condition)
        ]


class LabelGenerator(Generator):
    """One pyramid of SPADE blocks. `pyramid_width` is half the hidden channels of a norm (both papers: 128).

    The block at index i works at 1/strides[i] of the image; where the stride falls, nearest upsampling lies between.
    """

    def __init__(
        self,
        num_classes: int,
        noise_channels: int,
        width: int,
        pyramid_width: int,
        multiples: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.num_classes, self.noise_channels, self.strides = num_classes, noise_channels, strides
        inputs = noise_channels + num_classes
        channels = [width * m for m in multiples]
        self.stem = LabelConv(inputs, channels[0], 3, padding=1)
        modulation = partial(LabelModulation, inputs, 2 * pyramid_width)
        self.blocks = nn.ModuleList(SpadeBlock(i, o, modulation) for i, o in pairwise(channels))
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, Spade):
                initialise_apart(module.gamma_beta, [module.gamma_beta.out_channels // 2] * 2)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        noise = noise[:, : self.noise_channels]
        x = self.stem(*nearest(LATENT_STRIDE, labels, noise))
        for block, stride, before in zip(self.blocks, self.strides, (LATENT_STRIDE, *self.strides), strict=False):
            if stride < before:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, *nearest(stride, labels, noise))
        return torch.tanh(full_precision(self.to_rgb(F.leaky_relu(x, 0.2))))


class OasisGenerator(LabelGenerator):
    """OASIS: six blocks, noise in every norm. At 35 classes 71.11 M parameters."""

    def __init__(self, num_classes: int, noise_channels: int = 64, width: int = 64, pyramid_width: int = 64) -> None:
        blocks = (16, 16, 16, 8, 4, 2, 1), (32, 16, 8, 4, 2, 1)
        super().__init__(num_classes, noise_channels, width, pyramid_width, *blocks)


class SpadeGenerator(LabelGenerator):
    """SPADE without its image encoder: seven blocks, the third at the size of the second; the noise is not looked at.

    At 35 classes 93.02 M parameters.
    """

    def __init__(self, num_classes: int, width: int = 64, pyramid_width: int = 64) -> None:
        blocks = (16, 16, 16, 16, 8, 4, 2, 1), (32, 16, 16, 8, 4, 2, 1)
        super().__init__(num_classes, 0, width, pyramid_width, *blocks)

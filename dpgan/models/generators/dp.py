"""The dual-pyramid generator (section 3.1, tables 6 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import BatchNorm, full_precision, initialise
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


class ConvBlock(nn.Module):
    """Conv-BatchNorm-ReLU, a step of the conditioning pyramid (table 6)."""

    norm: nn.Module

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm(conv.out_channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(*inputs)))


def upsample_kernels(size: int, upsampled: int, like: Tensor) -> Tensor:
    """The matrices [3, upsampled, size] that upsample a line bilinearly, then shift it by -1, 0 and 1 with zeros."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    matrix = F.interpolate(identity[None], size=upsampled, mode="linear", align_corners=False)[0].T
    return F.pad(matrix, (0, 0, 1, 1)).unfold(0, upsampled, 1).movedim(-1, 1)


def add_conv3x3_upsampled(outputs: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """`output + conv3x3(upsample_bilinear(x))` with zero padding for each weight, computed at the resolution of `x`.

    Upsampling and the taps of the kernel act on rows and columns separately, so channels are mixed where there are
    few pixels, and small dense matrices do the rest: the same numbers for some 5% of the operations.
    outputs [B, O, H, W], channels last in memory; x [B, I, h, w]; weights [O, I, 3, 3].
    """
    height, width = outputs[0].shape[2:]
    rows = upsample_kernels(x.shape[2], height, weights[0])
    columns = upsample_kernels(x.shape[3], width, weights[0]).movedim(0, 1).flatten(1)  # [W, 3 * w]
    mixed = torch.einsum("bihw,oikl->bklhwo", x, torch.cat(list(weights)))
    tall = torch.einsum("bklhwo,kyh->bylwo", mixed, rows).flatten(2, 3)
    added = []
    for output, part in zip(outputs, tall.split([len(weight) for weight in weights], dim=-1), strict=True):
        lines = output.permute(0, 2, 3, 1).flatten(0, 1)  # [B * H, W, O]
        add = lines.baddbmm if torch.is_grad_enabled() else lines.baddbmm_
        lines = add(columns.to(part.dtype).expand(len(lines), -1, -1), part.flatten(0, 1))
        added.append(lines.unflatten(0, (-1, height)).permute(0, 3, 1, 2))
    return added


class PyramidModulation(Modulation, nn.Conv2d):  # type: ignore[misc]  # its forward is not a convolution's
    """The gammas and betas of a block (eq. 2): convolutions over concat(Up(s_0), s_i), or over s_i alone."""

    def __init__(self, pyramid_width: int, concat_s0: bool, channels: list[int]) -> None:
        super().__init__(pyramid_width * (1 + concat_s0), 2 * sum(channels), 3, padding=1)
        self.sizes = [c for c in channels for _ in "gb"]  # a gamma and a beta for every tensor that is modulated
        self.concat_s0 = concat_s0

    def kernels(self) -> list[Kernel]:
        return modulation_kernels(self, self.sizes)

    def respond(self, kernels: list[Kernel], *condition: Tensor) -> list[Tensor]:
        s_0, s_i = condition
        if not self.concat_s0:
            return [F.conv2d(s_i, weight, bias, padding=1) for weight, bias in kernels]
        channels = [s_0.shape[1], s_i.shape[1]]
        weights_0, weights_i = zip(*(weight.split(channels, dim=1) for weight, _ in kernels), strict=True)
        outputs = [F.conv2d(s_i, weight, bias, padding=1) for weight, (_, bias) in zip(weights_i, kernels, strict=True)]
        return add_conv3x3_upsampled(outputs, s_0, weights_0)


class DPGenerator(Generator):
    """The dual pyramid. At the paper's widths and 35 classes: 69.51 M parameters.

    `width`: channels of the last SPADE block; `pyramid_width`: channels of s_0 .. s_5. Both are 64 in the paper.
    `concat_s0=False` is "w/o cat" of the supplement's table 3.
    """

    def __init__(
        self,
        num_classes: int,
        noise_channels: int = 64,
        width: int = 64,
        pyramid_width: int = 64,
        concat_s0: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.noise_channels = num_classes, noise_channels
        inputs, s = noise_channels + num_classes, pyramid_width
        first = [LabelConv(inputs, s // 2, 3, padding=1), nn.Conv2d(s // 2, s, 3, padding=1)]
        strided = [nn.Conv2d(s, s, 3, stride=2, padding=1) for _ in range(5)]
        self.pyramid = nn.ModuleList(ConvBlock(conv) for conv in first + strided)
        channels = [width * m for m in (16, 16, 16, 8, 4, 2, 1)]
        self.stem = LabelConv(inputs, channels[0], 3, padding=1)
        modulation = partial(PyramidModulation, pyramid_width, concat_s0)
        self.blocks = nn.ModuleList(SpadeBlock(i, o, modulation) for i, o in pairwise(channels))
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, PyramidModulation):
                initialise_apart(module, module.sizes)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        s_i = self.pyramid[0](labels, noise)
        pyramid = []  # s_5 .. s_0
        for step in self.pyramid[1:]:
            s_i = step(s_i)
            pyramid.append(s_i)

        x = self.stem(*nearest(LATENT_STRIDE, labels, noise))
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, pyramid[-1], pyramid[-1 - i])
        return torch.tanh(full_precision(self.to_rgb(F.leaky_relu(x, 0.2))))

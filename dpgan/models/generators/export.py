"""A generator as it is served: what training needs, and painting does not, is folded into the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import BatchNorm
from .blocks import Generator, Kernel, Modulation, SpadeBlock, through
from .dp import ConvBlock


@torch.no_grad()
def for_inference(generator: Generator, dtype: torch.dtype = torch.float32) -> Generator:
    """A copy that paints the photos of `generator` in eval mode, in fewer operations; in `dtype`, photos in fp32.

    Spectral norm is folded into its weights; BatchNorm into the convolution before it (pyramid) or into the gammas and
    betas behind it (SPADE blocks); each beta of a shortcut has gone through it. The copy cannot be trained, and its
    state dict is of no use to others.
    """
    folded = copy.deepcopy(generator).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, ConvBlock):
            fold_norm_before(module)
        elif isinstance(module, SpadeBlock):
            fold_norms_behind(module)
            for name in ("conv_0", "conv_1", "conv_s")[: 2 + module.learned_shortcut]:
                setattr(module, name, without_spectral_norm(getattr(module, name)))
    return folded.to(dtype).to(memory_format=torch.channels_last)


def without_spectral_norm(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with the weight that its parametrisation gives.

    `remove_parametrizations` would take the weight from the module that `conv` was copied from as well.
    """
    plain = skip_init(nn.Conv2d, conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
    plain.weight, plain.bias = nn.Parameter(conv.weight, requires_grad=False), conv.bias
    return plain


def fold_norm_before(block: ConvBlock) -> None:
    """The BatchNorm into the convolution whose outputs it normalises."""
    conv, norm = block.conv, block.norm
    assert isinstance(norm, BatchNorm)
    mean, var = statistics(norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
    block.norm = nn.Identity()


def fold_norms_behind(block: SpadeBlock) -> None:
    """The BatchNorms of a block into the gammas and betas that modulate what they normalise."""
    kernels: list[Kernel] = []
    pairs = iter(block.modulation.kernels())
    for norm, gamma, beta in zip((block.norm_0, block.norm_1, block.norm_0), pairs, pairs, strict=False):
        assert isinstance(norm, BatchNorm)
        kernels += fold_norm(norm, gamma, beta)
    if block.learned_shortcut:
        kernels[-1] = through(block.conv_s.weight, kernels[-1])
    block.modulation = FixedModulation(block.modulation, kernels)
    block.norm_0 = block.norm_1 = nn.Identity()


def fold_norm(norm: BatchNorm, gamma: Kernel, beta: Kernel) -> list[Kernel]:
    """(x - mean) / deviation * gamma + beta = x * (gamma / deviation) + (beta - mean * gamma / deviation)."""
    mean, var = statistics(norm)
    scale = torch.rsqrt(var + norm.eps)
    (weight, bias), (shift, offset) = gamma, beta
    weight, bias = scale.view(-1, 1, 1, 1) * weight, scale * bias
    return [(weight, bias), (shift - mean.view(-1, 1, 1, 1) * weight, offset - mean * bias)]


def statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


class FixedModulation(Modulation):
    """A modulation whose kernels are made already."""

    def __init__(self, modulation: Modulation, kernels: list[Kernel]) -> None:
        super().__init__()
        self.modulation = modulation
        self.weights, self.biases = (nn.ParameterList(tensors) for tensors in zip(*kernels, strict=True))
        self.requires_grad_(False)

    def forward(self, kernel_s: Tensor | None, *condition: Tensor) -> list[Tensor]:
        """As of the modulation; its last beta has gone through `kernel_s` already."""
        return self.respond(self.kernels(), *condition)

    def kernels(self) -> list[Kernel]:
        return list(zip(self.weights, self.biases, strict=True))

    def respond(self, kernels: list[Kernel], *condition: Tensor) -> list[Tensor]:
        return self.modulation.respond(kernels, *condition)

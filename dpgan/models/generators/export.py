"""A generator as it is served: what training needs, and painting does not, is folded into the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .blocks import Generator, Kernel, SpadeBlock, through
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
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    block.norm = nn.Identity()


def fold_norms_behind(block: SpadeBlock) -> None:
    """The BatchNorms of a block into the gammas and betas that modulate what they normalise."""
    kernels: list[Kernel] = []
    pairs = iter(block.modulation.kernels())
    for norm, gamma, beta in zip((block.norm_0, block.norm_1, block.norm_0), pairs, pairs, strict=False):
        kernels += fold_norm(norm, gamma, beta)
    if block.learned_shortcut:
        kernels[-1] = through(block.conv_s.weight, kernels[-1])
    block.modulation = FixedModulation(block.modulation, kernels)
    block.norm_0 = block.norm_1 = nn.Identity()


def fold_norm(norm: nn.BatchNorm2d, gamma: Kernel, beta: Kernel) -> list[Kernel]:
    """(x - mean) / deviation * gamma + beta = x * (gamma / deviation) + (beta - mean * gamma / deviation)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    gamma = tuple(scale.view(-1, *[1] * (t.dim() - 1)) * t for t in gamma)
    shifted = (b - norm.running_mean.view(-1, *[1] * (g.dim() - 1)) * g for g, b in zip(gamma, beta, strict=True))
    return [gamma, tuple(shifted)]


class FixedModulation(nn.Module):
    """A modulation whose kernels are made already."""

    def __init__(self, modulation: nn.Module, kernels: list[Kernel]) -> None:
        super().__init__()
        self.modulation = modulation
        self.weights, self.biases = (nn.ParameterList(tensors) for tensors in zip(*kernels, strict=True))
        self.requires_grad_(False)

    def forward(self, kernel_s: Tensor | None, *condition: Tensor) -> list[Tensor]:
        """As of the modulation; its last beta has gone through `kernel_s` already."""
        return self.modulation.respond(list(zip(self.weights, self.biases, strict=True)), *condition)

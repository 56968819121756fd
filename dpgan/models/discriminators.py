"""The discriminators, by name: DP-GAN's (section 3.2, table 7), OASIS's, which is it without heads, and SPADE's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan.models.layers import BatchNorm, Conv1x1, initialise, spectral_norm

# Where in a discriminator the patch loss or feature matching is applied (table 4).
Part = Literal["none", "encoder", "decoder", "both"]


class DiscriminatorOutput(NamedTuple):
    """What the losses need of one forward pass."""

    logits: Tensor  # [B, C+1, H, W]: channel 0 = fake, channel c+1 = class c; empty where pixels are not labelled
    patches: list[Tensor]  # patch scores [B, 1, h, w], one a head; empty without heads
    features: list[Tensor]  # the feature maps that are matched, [B, c, h, w]


class Discriminator(nn.Module):
    """Image and its labels -> DiscriminatorOutput: what every discriminator here is to the rest of the package.

    Called with images, float [B, 3, H, W] in [-1, 1], H and W multiples of 32, and labels [B, H, W] (class indices,
    uint8 or int64); `heads=False` leaves the patch scores out.
    """

    heads: nn.ModuleList  # what makes the patch scores
    scales = 1  # networks that the features come from


def keep_signal(*parts: nn.Module) -> None:
    """Draw convolutions at gain 1: spectral norm makes the scale irrelevant; without it, 0.02 leaves no signal."""
    for conv in (m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)):
        nn.init.xavier_normal_(conv.weight)


class _Neighbours(torch.autograd.Function):
    """The sum of 2x2 neighbours over `divisor`, of zeros beyond the border: [B, C, H, W] -> [B, C, H + 1, W + 1] if
    `padding` is 1, -> [B, C, H - 1, W - 1] if it is 0.

    Each is the other's transpose, so either's backward pass is the other: a third of the time that torch's own takes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int, divisor: int) -> Tensor:
        ctx.padding, ctx.divisor = padding, divisor
        return F.avg_pool2d(x, 2, stride=1, padding=padding, divisor_override=divisor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return F.avg_pool2d(grad, 2, stride=1, padding=1 - ctx.padding, divisor_override=ctx.divisor), None, None


def pooled_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`avg_pool2d(conv(x), 2)` of a 3x3 convolution: `x` is averaged first, then every second pixel is convolved.

    A quarter of the operations. x [B, I, H, W], H and W even -> [B, O, H/2, W/2].
    """
    averaged: Tensor = _Neighbours.apply(x, 1, 4)
    return F.conv2d(averaged, conv.weight, conv.bias, stride=2)


def upsampled_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(upsample_nearest(x, 2))` of a 3x3 convolution, the other way round: each pixel of `x` is spread by the
    kernel, then neighbours are added.

    A quarter of the operations. x [B, I, H, W] -> [B, O, 2H, 2W].
    """
    assert conv.bias is not None
    spread = F.conv_transpose2d(x, turned(conv.weight), stride=2)  # [B, O, 2H + 1, 2W + 1]
    added: Tensor = _Neighbours.apply(spread, 0, 1)
    return added.add_(conv.bias.to(added.dtype)[:, None, None])  # oneDNN is 2 to 7 times slower with a bias


def turned(kernels: Tensor) -> Tensor:
    """Kernels [O, I, h, w], turned by 180 degrees, as `conv_transpose2d` wants them: [I, O, h, w], channels last.

    Transposed as one matrix, which torch copies up to eight times as fast as a transposed image.
    """
    _, inputs, *size = kernels.shape
    matrix = kernels.flip(2, 3).permute(0, 2, 3, 1).flatten(1).T.contiguous()  # [h * w * I, O]
    return matrix.view(*size, inputs, -1).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


class ResBlock(nn.Module):
    """Residual block: two 3x3 convolutions beside a 1x1 shortcut, which is there where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, normalised: bool) -> None:
        super().__init__()
        maybe_normalised = spectral_norm if normalised else lambda conv: conv
        self.conv_1 = maybe_normalised(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_2 = maybe_normalised(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_s: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv_s = maybe_normalised(Conv1x1(in_channels, out_channels))


class DownBlock(ResBlock):
    """ResBlock-Down: [B, I, H, W] -> [B, O, H/2, W/2]. `first`: the input is an image, not to be rectified."""

    def __init__(self, in_channels: int, out_channels: int, normalised: bool, first: bool) -> None:
        super().__init__(in_channels, out_channels, normalised)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(x if self.first else F.leaky_relu(x, 0.2))
        h = pooled_convolution(F.leaky_relu_(h, 0.2), self.conv_2)
        return h.add_(self.conv_s(F.avg_pool2d(x, 2)))  # a 1x1 convolution and the pooling commute


class UpBlock(ResBlock):
    """ResBlock-Up: [B, I, H, W] -> [B, O, 2H, 2W], nearest upsampling."""

    def forward(self, x: Tensor) -> Tensor:
        h = upsampled_convolution(F.leaky_relu(x, 0.2), self.conv_1)
        h = self.conv_2(F.leaky_relu_(h, 0.2))
        return h.add_(F.interpolate(self.conv_s(x), scale_factor=2.0))  # as above


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

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            scores: Tensor = super().forward(x)
            return scores
        # The kernel sees a single pixel in its centre alone. oneDNN (torch 2.14.1) leaves the other eight gradients
        # unwritten in bf16: NaN, by whatever lay there in memory.
        first, *others = self
        assert isinstance(first, nn.Conv2d)
        x = F.conv2d(x, first.weight[:, :, 1:2, 1:2], first.bias)
        for layer in others:
            x = layer(x)
        return x


class DPDiscriminator(Discriminator):
    """Image -> class or 'fake' of every pixel; the labels are not looked at.

    At width 64 and 35 classes: 22.92 M parameters, without heads (OASIS's discriminator) 22.25 M.
    `patch_at`: patch heads after down blocks 4 and 6 (encoder, as in the paper), or on the decoder's maps of the same
    channels, up blocks 2 and 1. `feature_at`: the features are the outputs of blocks 2..6 of either half.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        spectral_norm: bool = True,
        patch_at: Part = "encoder",
        feature_at: Part = "decoder",
    ) -> None:
        super().__init__()
        self.patch_at, self.feature_at = patch_at, feature_at
        down = [3, *(width * m for m in (2, 2, 4, 4, 8, 8))]
        up = [width * m for m in (8, 4, 4, 2, 2, 1)]
        self.down = nn.ModuleList(DownBlock(down[i], down[i + 1], spectral_norm, first=i == 0) for i in range(6))
        up_inputs = [down[6], *(u + d for u, d in zip(up, reversed(down[1:6]), strict=False))]
        self.up = nn.ModuleList(UpBlock(i, o, spectral_norm) for i, o in zip(up_inputs, up, strict=True))
        self.to_logits = Conv1x1(width, num_classes + 1)
        halves = 2 if patch_at == "both" else int(patch_at != "none")
        self.heads = nn.ModuleList(PatchHead(channels, width) for channels in [down[4], down[6]] * halves)
        self.apply(initialise)
        if not spectral_norm:
            keep_signal(self.down, self.up)

    def forward(self, images: Tensor, labels: Tensor | None = None, heads: bool = True) -> DiscriminatorOutput:
        encoded = []
        x = images
        for block in self.down:
            height, width = x.shape[2:]
            # Table 7 halves six times: where a side is an odd multiple of 32, the last step repeats its border.
            x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else x
            x = block(x)
            encoded.append(x)

        decoded = [self.up[0](encoded[5])]
        for block, skip in zip(self.up[1:], reversed(encoded[:5]), strict=True):
            x = decoded[-1]
            if x.shape[2:] != skip.shape[2:]:  # a border was repeated
                x = x[:, :, : skip.shape[2], : skip.shape[3]]
            decoded.append(block(torch.cat([skip, x], dim=1)))

        scored = choose(self.patch_at, [encoded[3], encoded[5]], [decoded[1], decoded[0]])
        patches = [head(x) for head, x in zip(self.heads, scored, strict=True)] if heads else []
        features = choose(self.feature_at, encoded[1:], decoded[1:])
        return DiscriminatorOutput(self.to_logits(decoded[-1]), patches, features)


def choose(part: Part, encoder: list[Tensor], decoder: list[Tensor]) -> list[Tensor]:
    """The maps of the halves that `part` names, the encoder's first."""
    return encoder * (part in ("encoder", "both")) + decoder * (part in ("decoder", "both"))


class PatchDiscriminator(Discriminator):
    """SPADE's: images and one-hot labels -> patch scores, at full and at half size (Park et al., figure 14).

    Two equal networks of five 4x4 convolutions, InstanceNorm and spectral norm in the inner three. The outputs of all
    but the last convolution are the features that are matched.
    """

    scales = 2

    def __init__(self, num_classes: int, width: int = 64, spectral_norm: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = [width * m for m in (1, 2, 4, 8)]
        networks = (self._network(3 + num_classes, channels, spectral_norm) for _ in range(self.scales))
        self.networks = nn.ModuleList(networks)
        self.heads = nn.ModuleList(nn.Conv2d(channels[-1], 1, 4, padding=2) for _ in range(self.scales))
        self.apply(initialise)
        if not spectral_norm:
            keep_signal(self.networks)

    @staticmethod
    def _network(inputs: int, channels: list[int], normalised: bool) -> nn.ModuleList:
        first = nn.Conv2d(inputs, channels[0], 4, stride=2, padding=2)
        blocks = [nn.Sequential(first, nn.LeakyReLU(0.2))]
        for stride, (i, o) in zip((2, 2, 1), pairwise(channels), strict=True):
            conv = nn.Conv2d(i, o, 4, stride=stride, padding=2)
            conv = spectral_norm(conv) if normalised else conv
            blocks.append(nn.Sequential(conv, nn.InstanceNorm2d(o), nn.LeakyReLU(0.2)))
        return nn.ModuleList(blocks)

    def forward(self, images: Tensor, labels: Tensor, heads: bool = True) -> DiscriminatorOutput:
        one_hot = F.one_hot(labels.long(), self.num_classes).movedim(-1, 1)
        scaled = torch.cat([one_hot.to(images.dtype), images], dim=1)
        patches, features = [], []
        for network, head in zip(self.networks, self.heads, strict=True):
            x = scaled
            for block in network.children():
                x = block(x)
                features.append(x)
            if heads:
                patches.append(head(x))
            scaled = F.avg_pool2d(scaled, 3, stride=2, padding=1, count_include_pad=False)
        return DiscriminatorOutput(images.new_empty(0), patches, features)


def build_discriminator(kind: str, patch_at: Part, feature_at: Part, **arguments: Any) -> Discriminator:
    """The discriminator of a name. SPADE's has its patch scores and features where it has them."""
    if kind == "patch":
        return PatchDiscriminator(**arguments)
    return DPDiscriminator(patch_at=patch_at, feature_at=feature_at, **arguments)

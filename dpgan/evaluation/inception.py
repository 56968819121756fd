"""The FID Inception network, behind published FIDs. Its weights are a file that the user brings."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.hardware import exact_fp32

# As its publisher names the file: its sha256 begins with these eight digits.
WEIGHTS, SHA256 = "weights-inception-2015-12-05-6726825d.pth", "6726825d"


class Inception:
    """The 2048 features of pool3, fed as OASIS and DP-GAN feed it: floats, bilinear to 299x299, without antialiasing.

    The network is torch-fidelity's, a port of the one that Heusel et al. (2017) took from TensorFlow. Raises
    UserError where the file is missing or another one.
    """

    name = "inception"
    dimension = 2048
    side = 299

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        if not weights.is_file():
            raise UserError(
                f"params.yaml: evaluate.inception_weights {weights}: no such file; it is {WEIGHTS} of torch-fidelity's "
                "release v0.2.0. Without it (null) FID and KID use EfficientNet-Lite0"
            )
        self.digest = file_sha256(weights)
        if not self.digest.startswith(SHA256):
            raise UserError(
                f"params.yaml: evaluate.inception_weights {weights}: its sha256 begins with {self.digest[:8]}, not "
                f"with {SHA256}: it is not {WEIGHTS}, and FIDs would not compare"
            )
        self.device = torch.device(device)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self.network = nn.Sequential(*layers, nn.Flatten()).to(self.device)

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""
        self.device = device
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> float64 [B, 2048] on the CPU."""
        images = F.interpolate(
            images.to(self.device, torch.float32),
            (self.side, self.side), mode="bilinear", align_corners=False, antialias=False,
        )  # fmt: skip
        with exact_fp32(self.device):
            return self.network(images).double().cpu()

"""LPIPS (Zhang et al., 2018, equation 1): a distance of two images that was fitted to what people find different.

It needs two files of weights, which the user brings and whose checksums are held: torchvision's AlexNet, and the heads
of LPIPS v0.1. The AlexNet's were not at hand when this was written: agreement with torchmetrics is tested on random
ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.hardware import exact_fp32

BACKBONE = "alexnet-owt-7be5be79.pth"
BACKBONE_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
HEADS = "alex.pth"
HEADS_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
HEADS_URL = "https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1"
TAPS = (1, 4, 7, 9, 11)  # the ReLUs after the five convolutions
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for images in [-1, 1]


class Lpips(nn.Module):
    """The AlexNet variant, frozen, fp32. UserError where a file of weights is missing or another one."""

    shift: Tensor
    scale: Tensor

    def __init__(self, folder: Path) -> None:
        """`folder` holds both files."""
        super().__init__()
        backbone = _load(folder / BACKBONE, BACKBONE_SHA256, str(AlexNet_Weights.IMAGENET1K_V1.url))
        heads = _load(folder / HEADS, HEADS_SHA256, HEADS_URL)
        network = alexnet()
        network.load_state_dict(backbone)
        self.network = network.features[: max(TAPS) + 1].requires_grad_(False).eval()
        for i in range(len(TAPS)):
            self.register_buffer(f"head_{i}", heads[f"lin{i}.model.1.weight"][0])  # [c, 1, 1], none below 0
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps at the taps, of unit length at every place, of images float [B, 3, H, W] in [-1, 1]."""
        x = (images.to(self.shift) - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if i in TAPS:
                maps.append(x / (1e-8 + x.square().sum(dim=1, keepdim=True)).sqrt())
        return maps

    @torch.no_grad()
    def apart(self, images: Tensor) -> Tensor:
        """Mean distance of all pairs among S images of one label map: float [S, B, 3, H, W] -> float64 [B], CPU."""
        seeds = len(images)
        total = torch.zeros(images.shape[1], dtype=torch.float64)
        with exact_fp32(self.shift.device):
            maps = [self.features(one) for one in images]
        for a in range(seeds):
            for b in range(a):
                for i, (x, y) in enumerate(zip(maps[a], maps[b], strict=True)):
                    weighted = (x - y).square() * self.get_buffer(f"head_{i}")
                    total += weighted.sum(dim=1).mean(dim=(1, 2)).double().cpu()
        return total / (seeds * (seeds - 1) / 2)


def _load(path: Path, sha256: str, url: str) -> dict[str, Tensor]:
    where = f"params.yaml: evaluate.lpips: {path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; get it from {url}, or set evaluate.lpips to null")
    found = file_sha256(path)
    if found != sha256:
        raise UserError(f"{where} is another file, or damaged: its sha256 is {found}, not {sha256}; get it from {url}")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights

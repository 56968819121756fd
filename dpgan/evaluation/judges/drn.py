"""DRN-D-105 for Cityscapes (Yu, Koltun and Funkhouser, 2017): the judge behind the papers' mIoU on Cityscapes.

The weights are `drn-d-105_ms_cityscapes.pth`, whose keys and shapes are checked to the last one. **They were not at
hand when this was written**: network, layout and preprocessing follow the paper and its public code (BSD-3-Clause),
and the tests run on random weights of that layout.

Two protocols, which give different values:

- `drn105_256` (OASIS, and papers after it): pictures and label maps at 256x512, the label maps downsampled nearest.
- `drn105_1024` (SPADE): pictures upsampled to 1024x2048, here bicubically, which no paper states, and read there. The
  label maps that they are held against are those of the training resolution, upsampled nearest: SPADE had the full
  ones, which differ along the edges.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dpgan.checks import DRN105_SIZES
from dpgan.config import JudgeSettings
from dpgan.evaluation.judges.base import (
    Judge,
    bottlenecks,
    conv_norm,
    eight_bits,
    match,
    normalise,
    resize,
)
from dpgan.evaluation.judges.weights import fill, published_files
from dpgan.labels import Card
from dpgan.models.files import read_tensors

FILES = ("drn-d-105_ms_cityscapes.pth",)
SOURCE = "github.com/fyu/drn, whose README links its Cityscapes models"

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# Of the photos of Cityscapes, as the network was trained with.
MEAN, DEVIATION = (0.290101, 0.328081, 0.286964), (0.182954, 0.186566, 0.184475)

# Levels 1 to 8 of DRN-D, which is the paper's DRN-C (figure 5) without residual connections at both ends: blocks or
# convolutions, and channels.
DEPTHS = (1, 1, 3, 4, 23, 3, 1, 1)
CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)


class DRN105(Judge):
    """Reads the 19 classes of Cityscapes; its state dict has the published file's keys."""

    kind = "drn105"

    def __init__(self, card: Card, size: tuple[int, int] = DRN105_SIZES[0]) -> None:
        name = f"drn105_{size[0]}"
        super().__init__(name, CLASSES, match(name, CLASSES, card))
        self.size = size[0], size[1]
        c, depth = CHANNELS, DEPTHS
        self.base = nn.Sequential(
            nn.Sequential(*conv_norm(3, c[0], 7)),
            _convolutions(c[0], c[0], depth[0]),
            _convolutions(c[0], c[1], depth[1], stride=2),
            bottlenecks(c[1], c[2], depth[2], stride=2),
            bottlenecks(4 * c[2], c[3], depth[3], stride=2),
            bottlenecks(4 * c[3], c[4], depth[4], dilation=2),
            bottlenecks(4 * c[4], c[5], depth[5], dilation=4),
            _convolutions(4 * c[5], c[6], depth[6], dilation=2),
            _convolutions(c[6], c[7], depth[7]),
        )
        self.seg = nn.Conv2d(c[7], len(CLASSES), 1)
        # Bilinear by its weights, which are in the file.
        self.up = nn.ConvTranspose2d(len(CLASSES), len(CLASSES), 16, 8, 4, groups=len(CLASSES), bias=False)

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, *size], normalised -> logits [B, 19, *size]."""
        logits: Tensor = self.up(self.seg(self.base(images)))
        return logits

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size

    def scores(self, images: Tensor) -> Tensor:
        """As `Judge.scores`, at `size`: logits."""
        pixels = resize(eight_bits(images), self.size, "bicubic").clamp(0, 1)
        logits: Tensor = self(normalise(pixels, MEAN, DEVIATION))
        return logits


def _convolutions(inputs: int, outputs: int, depth: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """DRN-D's levels 1, 2, 7 and 8: convolutions without residual connections, against gridding."""
    layers = conv_norm(inputs, outputs, 3, stride, dilation)
    for _ in range(depth - 1):
        layers += conv_norm(outputs, outputs, 3, dilation=dilation)
    return nn.Sequential(*layers)


def load_published(settings: JudgeSettings, card: Card) -> DRN105:
    """With the published weights that the settings name; UserError where they are not these."""
    judge = DRN105(card, settings.size or DRN105_SIZES[0])
    (path,) = published_files(settings, FILES, SOURCE)
    fill(judge, read_tensors(path)[0], path)
    return judge

"""UPerNet on ResNet-101 for ADE20K (Xiao et al., 2018): the judge behind the papers' mIoU on ADE20K.

The weights are `encoder_epoch_50.pth` and `decoder_epoch_50.pth` of mit-semseg's `ade20k-resnet101-upernet`, whose
keys and shapes are checked to the last one. **They were not at hand when this was written**: network, layout and
preprocessing follow the paper and its public code (BSD-3-Clause), and the tests run on random weights of that layout.

The protocol `upernet101` is that of the weights' own configuration: each picture at five sizes, the mean of the five
softmaxes at the picture's size, against its label map. Some papers read at one size; their values are lower.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan.config import JudgeSettings
from dpgan.evaluation.judges.base import Judge, bottlenecks, conv_norm, eight_bits, match, normalise, resize
from dpgan.evaluation.judges.weights import fill, published_files
from dpgan.labels import Card
from dpgan.models.files import read_tensors

FILES = ("encoder_epoch_50.pth", "decoder_epoch_50.pth")
SOURCE = "sceneparsing.csail.mit.edu/model/pytorch/ade20k-resnet101-upernet/"

SHORT_SIDES, LONGEST, MULTIPLE = (300, 375, 450, 525, 600), 1000, 32  # pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

# Ids 1 to 150 of objectInfo150.txt, its first name for each.
CLASSES = tuple(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
    plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
    tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
    traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
    flag""".replace("\n   ", "").split(", ")
)
DEPTHS, WIDTH = (3, 4, 23, 3), 64  # ResNet-101: blocks a level, inner channels of the first
PYRAMID, POOLS = 512, (1, 2, 3, 6)  # channels of the decoder; sides that the last level is pooled to


class UPerNet101(Judge):
    """Reads the 150 classes of ADE20K; its state dict has the published files' keys, behind `encoder.`, `decoder.`."""

    kind, name = "upernet101", "upernet101"

    def __init__(self, card: Card) -> None:
        super().__init__(self.name, CLASSES, match(self.name, CLASSES, card))
        self.encoder = Encoder()
        self.decoder = Decoder(self.encoder.channels, len(CLASSES))

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W], normalised, H and W multiples of 32 -> logits [B, 150, H / 4, W / 4]."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return input_size(height, width, max(SHORT_SIDES))

    def scores(self, images: Tensor) -> Tensor:
        """As `Judge.scores`, at the pictures' own size: the sum of the probabilities read at five sizes."""
        pixels = eight_bits(images)
        height, width = pixels.shape[-2:]
        seen = (resize(pixels, input_size(height, width, short)) for short in SHORT_SIDES)
        votes = (_up(self(normalise(x, MEAN, DEVIATION)), pixels).softmax(1) for x in seen)
        return functools.reduce(torch.add, votes)


def input_size(height: int, width: int, short: int) -> tuple[int, int]:
    """At what size a picture is read whose short side shall be `short`: aspect kept, then rounded up to 32."""
    scale = min(short / min(height, width), LONGEST / max(height, width))
    up = [-(-int(side * scale) // MULTIPLE) * MULTIPLE for side in (height, width)]
    return up[0], up[1]


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """ResNet-101 (He et al., 2016) that begins with three 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, _ = conv_norm(3, WIDTH, 3, stride=2)
        self.conv2, self.bn2, _ = conv_norm(WIDTH, WIDTH)
        self.conv3, self.bn3, _ = conv_norm(WIDTH, 2 * WIDTH)
        self.channels = [4 * WIDTH << level for level in range(4)]
        for level, depth in enumerate(DEPTHS):
            inputs = self.channels[level - 1] if level else 2 * WIDTH
            layers = bottlenecks(inputs, WIDTH << level, depth, stride=2 if level else 1)
            self.add_module(f"layer{level + 1}", layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """float [B, 3, H, W] -> four levels [B, channels, ...] at strides 4, 8, 16, 32."""
        for number in "123":
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        levels = []
        for number in "1234":
            x = getattr(self, f"layer{number}")(x)
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """Pyramid pooling of the last level, then a feature pyramid (Xiao et al., 2018, section 3)."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        last, w = channels[-1], PYRAMID
        self.ppm_conv = nn.ModuleList(nn.Sequential(*conv_norm(last, w, 1)) for _ in POOLS)
        self.ppm_last_conv = nn.Sequential(*conv_norm(last + len(POOLS) * w, w))
        self.fpn_in = nn.ModuleList(nn.Sequential(*conv_norm(inputs, w, 1)) for inputs in channels[:-1])
        self.fpn_out = nn.ModuleList(nn.Sequential(nn.Sequential(*conv_norm(w, w))) for _ in channels[:-1])
        self.conv_last = nn.Sequential(nn.Sequential(*conv_norm(len(channels) * w, w)), nn.Conv2d(w, classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The encoder's levels -> logits [B, classes, H / 4, W / 4]."""
        *lower, last = levels
        pooled = [
            conv(_up(F.adaptive_avg_pool2d(last, side), last)) for side, conv in zip(POOLS, self.ppm_conv, strict=True)
        ]
        top = self.ppm_last_conv(torch.cat([last, *pooled], 1))
        pyramid = [top]
        for level, lateral, smooth in zip(reversed(lower), reversed(self.fpn_in), reversed(self.fpn_out), strict=True):
            top = lateral(level) + _up(top, level)
            pyramid.insert(0, smooth(top))
        logits: Tensor = self.conv_last(torch.cat([_up(p, pyramid[0]) for p in pyramid], 1))
        return logits


def load_published(settings: JudgeSettings, card: Card) -> UPerNet101:
    """With the published weights that the settings name; UserError where they are not these."""
    judge = UPerNet101(card)
    for part, path in zip((judge.encoder, judge.decoder), published_files(settings, FILES, SOURCE), strict=True):
        fill(part, read_tensors(path)[0], path)
    return judge

"""What every judge is: a network that reads pictures, whose outputs have names that a dataset's card knows too.

A picture is good when a network that has only seen real photos finds the label map in it again. Real photos, read by
the same judge, are the ceiling.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan.errors import UserError, some
from dpgan.evaluation.portions import free, judging, portion
from dpgan.hardware import exact_fp32
from dpgan.labels import Card

OTHER = 255  # predicted: a class that the card does not evaluate. A card has at most 255 classes, 0..254


class Judge(nn.Module, ABC):
    """Pictures to class indices. `name` is its protocol, and stands in the names of its metrics (`miou_trained`)."""

    kind: ClassVar[str]  # its key in `judges.KINDS`
    name: str
    classes: tuple[str, ...]  # what its outputs stand for, in their order
    table: Tensor  # uint8 [outputs]: class index of the card, or OTHER

    def __init__(self, name: str, classes: Sequence[str], table: np.ndarray) -> None:
        super().__init__()
        self.name, self.classes = name, tuple(classes)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.table.device

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What its constructor takes beside the card, as JSON can hold it."""

    @classmethod
    def restored(cls, header: Mapping[str, Any], card: Card) -> Self:
        """One without weights, as the header of its file describes it; UserError where the card has other classes."""
        return cls(card, **header["config"])  # type: ignore[arg-type]

    @abstractmethod
    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The largest size at which it reads pictures of a size."""

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> [B, outputs, h, w]: the highest of a pixel is what it reads there.

        h, w are those of the judge's protocol: where they differ from H, W, the truth is resized to them.
        """

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> uint8 [B, h, w]: class indices of the card, OTHER for what it lacks."""
        at_once = portion(self.image_bytes(*images.shape[-2:]), free(self.device))
        with exact_fp32(self.device):
            return torch.cat(
                [self.table[self.scores(some.to(self.device)).argmax(1)] for some in images.split(at_once)]
            )

    def image_bytes(self, height: int, width: int) -> int:
        """Bytes while it reads one image of that size."""
        worked = self.working_size(height, width)
        return judging(worked[0] * worked[1], len(self.classes))


def eight_bits(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1] in steps of 1/255: the PNG files that published scores were read from."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255) / 255


def resize(images: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """float [B, C, H, W] at another size as Pillow does it: antialiased where it shrinks."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode=mode, align_corners=False, antialias=True)


def normalise(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """float [B, 3, H, W], each channel shifted and scaled."""
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, deviation))
    return (images - shift) / scale


def match(name: str, classes: Sequence[str], card: Card) -> np.ndarray:
    """uint8 [len(classes)]: the card's class index of every output of a judge, OTHER where it evaluates no such class.

    By name: spelling aside (case, `_`), and of "sidewalk, pavement" the first that the card evaluates. Where that
    leaves a class of the card without output, by place: the label sets are one in two spellings when they are equally
    long, half of the names or more stand at their place, and none at another's. UserError otherwise.
    """
    wanted = {_plain(card.classes[i].name): int(i) for i in card.evaluated}
    named = [next((wanted[n] for n in map(_plain, re.split("[,;]", text)) if n in wanted), OTHER) for text in classes]
    missing = [info.name for i, info in enumerate(card.classes) if info.evaluate and i not in named]
    if not missing:
        return np.array(named, dtype=np.uint8)
    known = [(here, place) for here, place in zip(named, card.evaluated, strict=False) if here != OTHER]
    same_length = len(classes) == len(card.evaluated)
    if same_length and 2 * len(known) >= len(classes) and all(here == place for here, place in known):
        return card.evaluated.astype(np.uint8)
    raise UserError(
        f"the judge {name} was made for another label set: of the classes that data/{card.name}/dataset.yaml evaluates "
        f"it does not know {some(missing)}; its own are {some(classes)}. Set `judge` in params.yaml to one of this "
        "label set, or to {kind: trained}"
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU: what both published networks are built of; a kernel keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Bottleneck(nn.Module):
    """The residual block of He et al. (2016), figure 5, whose 3x3 convolution holds stride and dilation."""

    def __init__(self, inputs: int, inner: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = 4 * inner
        self.conv1, self.bn1, _ = conv_norm(inputs, inner, 1)
        self.conv2, self.bn2, _ = conv_norm(inner, inner, 3, stride, dilation)
        self.conv3, self.bn3, _ = conv_norm(inner, outputs, 1)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)[:2])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def bottlenecks(inputs: int, inner: int, depth: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """`depth` blocks of 4 x `inner` channels, the first of which holds the stride."""
    first = Bottleneck(inputs, inner, stride, dilation)
    return nn.Sequential(first, *(Bottleneck(4 * inner, inner, dilation=dilation) for _ in range(depth - 1)))

"""The judge: a small segmentation network, trained on the real photos, that mIoU is measured with.

A picture is good when a network that has only seen real photos finds the label map in it again.
Real photos, scored by the same judge, are the ceiling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpgan.config import JudgeSettings
from dpgan.data.pixels import to_float
from dpgan.errors import UserError
from dpgan.evaluation.features import lite0_input, lite0_network
from dpgan.hardware import native_bf16

# Blocks of Lite0 after which a stride ends, and their channels: strides 2, 4, 8, 16, 32.
_STAGES = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}


class Judge(nn.Module):
    """EfficientNet-Lite0 and a feature pyramid (Lin et al., 2017): images [-1, 1] to class logits.

    It works at `size` (height, width), or where that is None at 1.5 times the size of the images it gets:
    Lite0 halves a picture at once, and a pole in 64x128 is two pixels wide.
    """

    def __init__(
        self, num_classes: int, pretrained: bool = True, size: tuple[int, int] | None = None, width: int = 32
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size = size
        network = lite0_network(pretrained)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # Lite0's 0.01 needs more steps than the judge is trained for
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in _STAGES.values())
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> logits [B, C, H, W]."""
        height, width = images.shape[-2:]
        x = lite0_input(_resize(images, self.size or (3 * height // 2, 3 * width // 2)))
        x = self.stem(x)
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _STAGES:
                features.append(x)
        top: Tensor | None = None
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            x = lateral(feature)
            top = x if top is None else x + _resize(top, feature.shape[-2:])
        return _resize(self.classify(self.smooth(top)), (height, width))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def train_judge(
    images: np.ndarray,
    labels: np.ndarray,
    void: np.ndarray,
    settings: JudgeSettings,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    device: torch.device | str = "cpu",
) -> Judge:
    """A judge trained on real photos; on one machine's CPU the same seed gives the same judge.

    images: uint8 [N, H, W, 3]; labels: uint8 [N, H, W], class indices; both may be memory maps.
    void: bool [C], classes that are not learned. progress: called with (images seen, images in all,
    loss) after every step. The cross-entropy weighs a class by 1 / sqrt(its share of the pixels).
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(len(void), size=settings.size)
    judge.train().to(device).to(memory_format=torch.channels_last)
    weights = class_weights(labels, void).to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr)
    steps = math.ceil(settings.images / settings.batch)
    # Linear warm-up over the first tenth, cosine to 0.
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(10 * (step + 1) / steps, 1) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for step, chosen in enumerate(_sample(len(images), steps * settings.batch, generator).split(settings.batch)):
        # Sorted: a memory map is then read from front to back.
        rows = chosen.sort().values.numpy()
        photo, truth = augment(to_float(images[rows]), torch.from_numpy(labels[rows]), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device)):
            logits = judge(photo.to(device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), truth.long().to(device), weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if progress:
            progress((step + 1) * settings.batch, steps * settings.batch, loss.item())
    return judge.eval()


def class_weights(labels: np.ndarray, void: np.ndarray) -> Tensor:
    """float [C]: 1 / sqrt(share of the pixels), 1 for the average pixel, 0 for void and absent classes."""
    counts = sum(np.bincount(label.ravel(), minlength=len(void)) for label in labels) * ~void
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()


def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip, crop of at least 3/4 of each side, and colour jitter, drawn for each picture.

    images: float [B, 3, H, W]; labels: uint8 [B, H, W]; returned in the same shapes and types.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator)

    scale = uniform(0.75, 1)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    theta[:, :, 2] = uniform(-1, 1, 2) * (1 - scale[:, None])
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    planes = labels[:, None].float()
    planes = F.grid_sample(planes, grid, mode="nearest", padding_mode="border", align_corners=False)
    # Contrast, tint, brightness.
    images = images * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.9, 1.1, 3, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1)
    return images, planes[:, 0].to(labels.dtype)


def _sample(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices: shuffled epochs, one after the other."""
    epochs = math.ceil(count / population)
    return torch.cat([torch.randperm(population, generator=generator) for _ in range(epochs)])[:count]


def save_judge(judge: Judge, path: Path) -> None:
    """The judge as one safetensors file; what it was built with stands in the metadata."""
    metadata = {"num_classes": str(judge.num_classes), "size": json.dumps(judge.size)}
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, path, metadata)


def load_judge(path: Path, num_classes: int) -> Judge:
    """The judge that `save_judge` wrote, in eval mode; UserError where it is not one for these classes."""
    remedy = "`dvc repro judge` trains a new one"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("num_classes") != str(num_classes):
                found = metadata.get("num_classes", "an unknown number of")
                raise UserError(f"{path}: a judge of {found} classes, the dataset has {num_classes}; {remedy}")
            size = json.loads(metadata["size"])
            judge = Judge(num_classes, pretrained=False, size=size and tuple(size))
            judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} is not there; {remedy}") from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not a judge's weights ({str(error).splitlines()[0]}); {remedy}") from None
    return judge.eval()


@torch.no_grad()
def confusion(
    judge: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, void: np.ndarray
) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns): int64 [C, C].

    batches: images float [B, 3, H, W] in [-1, 1] with labels uint8 [B, H, W]. void: bool [C]; void pixels
    are not counted, and void classes not predicted. Runs in the precision and on the device of the judge.
    """
    device = next(judge.parameters()).device
    barred = torch.from_numpy(void).to(device)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for images, labels in batches:
        logits = judge(images.to(device)).masked_fill(barred[:, None, None], -math.inf)
        truth, predicted = labels.cpu().numpy().astype(np.int64), logits.argmax(1).cpu().numpy()
        counted = ~void[truth]
        cells = truth[counted] * num_classes + predicted[counted]
        counts += np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts


def iou(confusion: np.ndarray, evaluated: np.ndarray) -> tuple[np.ndarray, float]:
    """Intersection over union by evaluated class, float64 [K], and mIoU, their mean, both in percent.

    evaluated: int [K], class indices. As in the Cityscapes protocol, only pixels whose true class is
    evaluated count; a prediction of another class there is a miss. NaN, and left out of the mean, where a
    class is neither there nor predicted.
    """
    counted = confusion[evaluated]
    hit = counted[:, evaluated].diagonal()
    union = counted.sum(axis=1) + counted[:, evaluated].sum(axis=0) - hit
    values = np.where(union > 0, 100.0 * hit / np.maximum(union, 1), np.nan)
    return values, float(np.nanmean(values))

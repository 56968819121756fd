"""The judge `trained`: a small segmentation network, trained here on the real photos, for any dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan.config import JudgeSettings
from dpgan.data.pixels import to_float
from dpgan.errors import UserError
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.features import lite0_input, lite0_network
from dpgan.evaluation.judges.base import Judge
from dpgan.evaluation.portions import learning
from dpgan.hardware import native_bf16
from dpgan.labels import Card

# Blocks of Lite0 after which a stride ends, and their channels: strides 2, 4, 8, 16, 32.
_STAGES = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}
_WIDTH = 32  # channels of the pyramid


class Trained(Judge):
    """EfficientNet-Lite0 and a feature pyramid (Lin et al., 2017): images [-1, 1] to logits of the card's classes.

    It works at `size` (height, width), or where that is None at 1.5 times the size of the images it gets:
    Lite0 halves a picture at once, and a pole in 64x128 is two pixels wide.
    """

    kind, name = "trained", "trained"
    barred: Tensor  # bool [C]: void, which is never predicted

    def __init__(self, card: Card, size: tuple[int, int] | None = None, pretrained: bool = False) -> None:
        names = [info.name for info in card.classes]
        super().__init__(self.name, names, np.arange(card.num_classes, dtype=np.uint8))
        self.register_buffer("barred", torch.from_numpy(card.void), persistent=False)
        self.size = size and (size[0], size[1])
        network = lite0_network(pretrained)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # Lite0's 0.01 needs more steps than the judge is trained for
        self.lateral = nn.ModuleList(nn.Conv2d(c, _WIDTH, 1) for c in _STAGES.values())
        self.smooth = nn.Sequential(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.Conv2d(_WIDTH, card.num_classes, 1)

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    @classmethod
    def restored(cls, header: Mapping[str, Any], card: Card) -> Self:
        ours, theirs = [info.name for info in card.classes], header["classes"]
        if ours != theirs:
            differ = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
            how = f"has {len(ours)}" if differ is None else f"has {differ[1]!r} where the judge has {differ[0]!r}"
            raise UserError(
                f"the judge was trained for {len(theirs)} other classes: data/{card.name}/dataset.yaml {how}; "
                "`dvc repro judge` trains a new one"
            )
        return super().restored(header, card)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> logits [B, C, H, W]."""
        height, width = images.shape[-2:]
        x = lite0_input(_resize(images, self.working_size(height, width)))
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

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or (3 * height // 2, 3 * width // 2)

    def scores(self, images: Tensor) -> Tensor:
        """As `Judge.scores`, at the pictures' own size: logits, those of void classes -inf."""
        return self(images).masked_fill(self.barred[:, None, None], -math.inf)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


Batch = tuple[int, np.ndarray, np.ndarray]  # its number; photos uint8 [B, H, W, 3]; label maps uint8 [B, H, W]
Step = tuple[float, dict[str, Tensor]]  # loss; after the last batch the judge's weights, else nothing


@dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """The photos of every step of a training, read when they are asked for."""

    images: np.ndarray  # uint8 [N, H, W, 3]; may be a memory map
    labels: np.ndarray  # uint8 [N, H, W]
    rows: Sequence[np.ndarray]  # of every step, sorted: a memory map is then read from front to back

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: Any) -> Any:
        if step >= len(self.rows):
            raise IndexError(step)
        return step, self.images[self.rows[step]], self.labels[self.rows[step]]


class Training:
    """The training of a judge: called with one batch after the other, in the process that holds the network."""

    def __init__(self, card: Card, settings: JudgeSettings, seed: int, population: int, weights: Tensor) -> None:
        """weights: float [C], of the classes in the loss."""
        self.card, self.settings, self.seed, self.weights = card, settings, seed, weights
        self.of = population, weights
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = math.ceil(settings.images / settings.batch)
        sampled = _sample(population, self.steps * settings.batch, self.generator).split(settings.batch)
        self.rows = [chosen.sort().values.numpy() for chosen in sampled]
        self.drawn = self.generator.get_state()
        self.step = 0

    def to(self, device: torch.device) -> Self:
        """Itself, with a new network on a device."""
        self.device, self.generator = device, torch.Generator()
        self.generator.set_state(self.drawn)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.judge = Trained(self.card, self.settings.size, pretrained=True)
        self.judge.train().to(device).to(memory_format=torch.channels_last)
        self.weights = self.weights.to(device)
        self.optimizer = torch.optim.AdamW(self.judge.parameters(), lr=self.settings.lr)
        steps = self.steps
        # Linear warm-up over the first tenth, cosine to 0.
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(10 * (step + 1) / steps, 1) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        return self

    def __call__(self, batch: Batch, /) -> Step:
        """One step. UserError if batches are missing before it: another process had them."""
        number, images, labels = batch
        if number != self.step:
            raise UserError("the worker that trained the judge died, and the training with it; start the stage again")
        self.step += 1
        photo, truth = augment(to_float(images), torch.from_numpy(labels), self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=native_bf16(self.device)):
            logits = self.judge(photo.to(self.device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), truth.long().to(self.device), weight=self.weights)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        last = self.step == self.steps
        return loss.item(), {k: v.cpu() for k, v in self.judge.state_dict().items()} if last else {}

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, before the first step."""
        return Training, (self.card, self.settings, self.seed, *self.of)


def train_judge(
    images: np.ndarray,
    labels: np.ndarray,
    card: Card,
    settings: JudgeSettings,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    engine: Engine | None = None,
) -> Trained:
    """A judge trained on real photos; on one machine's CPU the same seed gives the same judge.

    images: uint8 [N, H, W, 3]; labels: uint8 [N, H, W], class indices; both may be memory maps.
    progress: called with (images seen, images in all, loss) after every step. Void classes are not learned; the
    cross-entropy weighs another by 1 / sqrt(its share of the pixels).
    """
    training = Training(card, settings, seed, len(images), class_weights(labels, card.void))
    batches = Batches(images, labels, training.rows)
    total = len(batches) * settings.batch
    pixels = settings.batch * math.prod(labels.shape[1:])
    weights: dict[str, Tensor] = {}
    for step, (loss, last) in enumerate((engine or Engine()).in_turn(training, batches, learning(pixels)), start=1):
        weights = last or weights
        if progress:
            progress(step * settings.batch, total, loss)
    with torch.random.fork_rng(devices=[]):
        judge = Trained(card, settings.size)
    judge.load_state_dict(weights)
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

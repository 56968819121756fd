"""The losses of DP-GAN (section 3.3) and OASIS's LabelMix, as pure functions on integer labels.

Labels are class indices, uint8 or int64 [B, H, W]. The discriminator's logits are [B, C+1, H, W]: channel 0 is the
fake class and channel c+1 is class c. Every loss is computed in fp32, whatever the dtype of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIECE = 2**18  # numbers; 1 MB in fp32 stays in cache

FeatureMatching = Literal["mean", "sum", "relative", "l1"]


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class: int64 [C]. Sum over workers before `class_weights` to weight by the global batch."""
    return torch.bincount(labels.flatten(), minlength=num_classes)


def class_weights(counts: Tensor, void: Tensor) -> Tensor:
    """Weights of the classes, fp32 [C]: eq. 4 in the released code's form.

    pixels / (classes present * pixels of the class), and 0 for void and absent classes. Over the pixels of a batch
    without void the mean weight is exactly 1, however many classes it holds.
    `counts` int [C] of one global batch; `void` bool [C] marks don't-care classes.
    """
    present = (counts > 0) & ~void
    weights = counts.sum() / (present.sum() * counts)
    return torch.where(present, weights, 0.0)


def by_pixel(logits: Tensor) -> Tensor:
    """[B, C+1, H, W] -> [B * H * W, C+1]; torch's softmax over channels copies a channels-last image otherwise."""
    return logits.permute(0, 2, 3, 1).flatten(0, 2)


def sum_by_pieces(loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The sum of `loss(*piece)` over pieces of `rows`, [N, ...] each; in one piece but on a CPU.

    Logits are the largest tensors of a step. Piece by piece all that is made of them stays in cache, and nothing of it
    is kept for the backward pass, which computes it again.
    """
    if rows[0].device.type != "cpu":
        return loss(*rows)
    pieces = zip(*(x.split(max(1, PIECE // rows[0].shape[1])) for x in rows), strict=True)
    losses = [checkpoint(loss, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(losses).sum()


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """First term of eq. 3 (real images) and of eq. 7 (generated ones): weighted cross-entropy, mean over all pixels."""
    weights = F.pad(weights, (1, 0))

    def of_piece(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels.long() + 1, weight=weights, reduction="sum")

    return sum_by_pieces(of_piece, by_pixel(logits), labels.flatten()) / labels.numel()


def fake_loss(logits: Tensor) -> Tensor:
    """Second term of eq. 3: mean of -log p(fake) over all pixels, don't-care ones included."""

    def of_piece(logits: Tensor) -> Tensor:
        fake = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits.float(), fake, reduction="sum")

    logits = by_pixel(logits)
    return sum_by_pieces(of_piece, logits) / len(logits)


def patch_loss_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Eq. 5: hinge loss of the patch scores [B, 1, h, w], mean over the heads."""
    losses = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def patch_loss_generator(fake: Sequence[Tensor], clamp: bool = False) -> Tensor:
    """The generator's side of eq. 5: -mean of the scores; with `clamp` the mean of max(1 - score, 0) of eq. 7.

    The clamped form stops pushing where the discriminator is convinced; the released code does not clamp.
    """
    losses = [F.relu(1 - f.float()).mean() if clamp else -f.float().mean() for f in fake]
    return torch.stack(losses).mean()


def feature_matching_loss(
    fake: Sequence[Tensor], real: Sequence[Tensor], reduction: FeatureMatching, networks: int = 1
) -> Tensor:
    """Eq. 6: mean squared distance of the features; `mean` (paper) or `sum` (released code) over layers.

    `relative` is `mean` with each layer divided by its mean square on the real image, image by image: it does not
    grow with the features of a discriminator without spectral norm, and stays a mean over images, which workers and
    micro-batches may share. `l1` is SPADE's: mean absolute distances, summed over the layers of a network and averaged
    over the `networks`. The real image's features are a constant of the loss.
    """
    layers = [(f.float(), r.detach().float()) for f, r in zip(fake, real, strict=True)]
    if reduction == "l1":
        return torch.stack([F.l1_loss(f, r) for f, r in layers]).sum() / networks
    if reduction == "relative":
        sizes = [r.square().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12).sqrt() for _, r in layers]
        layers = [(f / size, r / size) for (f, r), size in zip(layers, sizes, strict=True)]
    losses = torch.stack([F.mse_loss(f, r) for f, r in layers])
    return losses.sum() if reduction == "sum" else losses.mean()


def labelmix_mask(labels: Tensor, table: Tensor) -> Tensor:
    """Mask of LabelMix, bool [B, 1, H, W], True = real: `table` bool [C] holds one draw a class for the batch."""
    return table[labels.long()].unsqueeze(1)


def labelmix(real: Tensor, fake: Tensor, mask: Tensor) -> Tensor:
    """LabelMix(real, fake, mask): the real pixels where the mask is True, the generated ones elsewhere."""
    return torch.where(mask, real, fake)


def labelmix_loss(mixed_logits: Tensor, real_logits: Tensor, fake_logits: Tensor, mask: Tensor) -> Tensor:
    """Eq. 8 as a mean: distance of the logits of a mixed image from the mixed logits; gradients reach all three."""

    def of_piece(mixed: Tensor, real: Tensor, fake: Tensor, mask: Tensor) -> Tensor:
        return F.mse_loss(mixed.float(), labelmix(real.float(), fake.float(), mask), reduction="sum")

    logits = [by_pixel(x) for x in (mixed_logits, real_logits, fake_logits)]
    return sum_by_pieces(of_piece, *logits, by_pixel(mask)) / mixed_logits.numel()

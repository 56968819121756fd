"""Losses against values worked out by hand, and against literals of a fixed seed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpgan import losses

LABELS = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, 2]]], dtype=torch.uint8)  # 2, 2 and 4 pixels; class 3 is absent
VOID = torch.tensor([True, False, False, False])


def batch() -> tuple[Tensor, Tensor]:
    """Logits [2, 5, 8, 8] and labels of four classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 8, 8, generator=generator)
    return logits, torch.randint(0, 4, (2, 8, 8), generator=generator, dtype=torch.uint8)


def test_class_weights_by_hand() -> None:
    counts = losses.class_counts(LABELS, 4)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 2, 4, 0]
    # 8 pixels, two classes present beside void
    torch.testing.assert_close(losses.class_weights(counts, VOID), torch.tensor([0.0, 2.0, 1.0, 0.0]))
    # Without void the mean over the pixels is 1.
    weights = losses.class_weights(counts, torch.zeros(4, dtype=torch.bool))
    assert weights[LABELS.long()].mean().item() == pytest.approx(1.0)


def test_class_weights_of_summed_counts_are_those_of_the_global_batch() -> None:
    _, labels = batch()
    summed = losses.class_counts(labels[:1], 4) + losses.class_counts(labels[1:], 4)
    assert torch.equal(summed, losses.class_counts(labels, 4))


def test_class_weights_of_a_batch_that_is_all_void() -> None:
    assert losses.class_weights(torch.tensor([8, 0, 0, 0]), VOID).tolist() == [0, 0, 0, 0]


def test_segmentation_loss_is_a_mean_over_all_pixels_void_included() -> None:
    logits, labels = batch()
    weights = torch.tensor([0.0, 1.5, 0.5, 2.0])
    log_p = F.log_softmax(logits, dim=1)[:, 1:]
    expected = -(F.one_hot(labels.long(), 4).movedim(-1, 1) * log_p * weights[:, None, None]).sum(1).mean()
    torch.testing.assert_close(losses.segmentation_loss(logits, labels, weights), expected)


def test_fake_loss() -> None:
    logits, _ = batch()
    torch.testing.assert_close(losses.fake_loss(logits), -F.log_softmax(logits, dim=1)[:, 0].mean())
    assert losses.fake_loss(torch.zeros(1, 5, 2, 2)).item() == pytest.approx(math.log(5))


def test_patch_losses_by_hand() -> None:
    real = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])]
    fake = [torch.tensor([-2.0, 0.0]), torch.tensor([3.0])]
    # heads: (0 + 0.5)/2 + (0 + 1)/2 = 0.75 and 2 + 4 = 6
    assert losses.patch_loss_discriminator(real, fake).item() == pytest.approx((0.75 + 6) / 2)
    assert losses.patch_loss_generator(fake).item() == pytest.approx((1 - 3) / 2)
    assert losses.patch_loss_generator(fake, clamp=True).item() == pytest.approx(((3 + 1) / 2 + 0) / 2)


def test_patch_loss_has_a_gradient() -> None:
    score = torch.zeros(3, requires_grad=True)
    losses.patch_loss_discriminator([score], [-score]).backward()
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.full((3,), -2 / 3))


def test_feature_matching_reductions_and_gradient() -> None:
    fake = [torch.zeros(2, 3, 1, 1, requires_grad=True), torch.zeros(4, 1, 1, 1, requires_grad=True)]
    real = [torch.ones(2, 3, 1, 1, requires_grad=True), torch.full((4, 1, 1, 1), 2.0)]
    assert losses.feature_matching_loss(fake, real, "sum").item() == 5
    scaled = [[7 * t for t in layers] for layers in (fake, [r + 1 for r in real])]
    relative = losses.feature_matching_loss(fake, [r + 1 for r in real], "relative")
    torch.testing.assert_close(losses.feature_matching_loss(*scaled, "relative"), relative)
    random = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    apart = [losses.feature_matching_loss([f[None]], [r[None]], "relative") for f, r in zip(*random, strict=True)]
    torch.testing.assert_close(losses.feature_matching_loss(*random[:, None], "relative"), torch.stack(apart).mean())
    assert losses.feature_matching_loss(fake, real, "l1", networks=2).item() == (1 + 2) / 2
    loss = losses.feature_matching_loss(fake, real, "mean")
    assert loss.item() == 2.5
    loss.backward()
    assert fake[0].grad is not None
    assert real[0].grad is None


def test_labelmix() -> None:
    mask = losses.labelmix_mask(LABELS, torch.tensor([True, False, True, False]))
    assert mask.shape == (1, 1, 2, 4)
    assert mask[0, 0].tolist() == [[True, True, False, False], [True] * 4]
    mixed = losses.labelmix(torch.ones(1, 3, 2, 4), torch.zeros(1, 3, 2, 4), mask)
    assert torch.equal(mixed[:, :1], mask.float())


def test_labelmix_loss_reaches_all_three_logits() -> None:
    mask = losses.labelmix_mask(LABELS, torch.tensor([True, False, True, False]))
    mixed, real, fake = (torch.full((1, 5, 2, 4), float(v), requires_grad=True) for v in (0, 1, 2))
    loss = losses.labelmix_loss(mixed, real, fake, mask)
    assert loss.item() == pytest.approx((6 * 1 + 2 * 4) / 8)
    loss.backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (mixed, real, fake))


def test_losses_are_fp32_for_bf16_logits() -> None:
    logits, labels = batch()
    half = logits.bfloat16()
    weights = torch.ones(4)
    assert losses.segmentation_loss(half, labels, weights).dtype == torch.float32
    torch.testing.assert_close(losses.fake_loss(half), losses.fake_loss(half.float()), rtol=0, atol=0)


def test_literals() -> None:
    logits, labels = batch()
    weights = losses.class_weights(losses.class_counts(labels, 4), VOID)
    values = [
        losses.segmentation_loss(logits, labels, weights).item(),
        losses.fake_loss(logits).item(),
        losses.labelmix_loss(logits, 2 * logits, -logits, losses.labelmix_mask(labels, VOID)).item(),
    ]
    assert values == pytest.approx([1.949617, 1.906016, 3.760054], rel=1e-5)

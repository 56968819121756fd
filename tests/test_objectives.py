"""Each loss trains what it should and nothing else, for every pair of networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from test_step import CLASSES, make_step, run, settings
from torch import Tensor, nn

from dpgan.checks import check_losses
from dpgan.config import LossWeights, TrainSettings
from dpgan.models.discriminators import Discriminator, build_discriminator
from dpgan.models.generators import Generator, build_generator
from dpgan.models.perceptual import PerceptualLoss
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss

GENERATORS, DISCRIMINATORS = ("dp", "oasis", "spade"), ("dp", "oasis", "patch")
NONE = {"pixel": 0.0, "patch": 0.0, "feature": 0.0, "labelmix": 0.0, "perceptual": 0.0, "l1": 0.0}
PATCH = {"pixel": 0.0, "labelmix": 0.0}  # what a patch discriminator does without
# The settings of each discriminator, as `train_settings` would fill them in.
ROWS: dict[str, dict[str, Any]] = {
    "dp": {},
    "oasis": {"patch_at": "none", "feature_at": "none"},
    "patch": {"patch_at": "encoder", "feature_at": "encoder", "feature_matching": "l1", "losses": PATCH},
}


def networks(s: TrainSettings) -> tuple[Generator, Discriminator, PerceptualLoss]:
    torch.manual_seed(0)
    generator = build_generator(**s.generator_arguments(CLASSES))
    discriminator = build_discriminator(**s.discriminator_arguments(CLASSES))
    return generator, discriminator, PerceptualLoss(nn.Sequential(nn.Conv2d(3, 4, 3)), {0: 1.0})


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, noise."""
    g = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 64, 64, generator=g) * 2 - 1
    return (
        images,
        torch.randint(0, CLASSES, (2, 64, 64), generator=g, dtype=torch.uint8),
        torch.randn(2, 3, generator=g),
    )


def reached(total: Tensor, *modules: nn.Module) -> list[set[str]]:
    """The parameters of each module that `total` has a gradient for; at least one of them is not zero."""
    found = []
    for module in modules:
        names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        got = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
        assert not got or any(g.abs().sum() > 0 for g in got.values())
        found.append(set(got))
    return found


def parts(discriminator: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in discriminator.named_parameters() if name.startswith(prefixes)}


GENERATOR_LOSSES = [
    *(("dp", loss, {}) for loss in ("pixel", "patch", "feature", "perceptual", "l1")),
    *(("dp", "patch", {"patch_at": part, "patch_clamp": True}) for part in ("decoder", "both")),
    *(("dp", "feature", {"feature_at": part}) for part in ("encoder", "both")),
    *(("oasis", loss, {}) for loss in ("pixel", "perceptual", "l1")),
    *(("patch", loss, {}) for loss in ("patch", "feature", "perceptual", "l1")),
]


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(("discriminator_kind", "loss", "changes"), GENERATOR_LOSSES)
def test_each_generator_loss_trains_the_whole_generator(
    kind: str, discriminator_kind: str, loss: str, changes: dict[str, Any]
) -> None:
    row = {**ROWS[discriminator_kind], **changes, "losses": {**NONE, loss: 1.0}}
    s = settings(generator=kind, discriminator=discriminator_kind, **row)
    generator, discriminator, perceptual = networks(s)
    images, labels, noise = batch()
    total, terms, fake = GeneratorLoss(generator, discriminator, perceptual, s)(
        images.requires_grad_(), labels, noise, torch.ones(CLASSES)
    )
    assert set(terms) == {f"G_{loss}"}
    assert fake.shape == images.shape
    assert reached(total, generator) == [{name for name, _ in generator.named_parameters()}]
    (towards_real,) = torch.autograd.grad(total, images, allow_unused=True, retain_graph=True)
    assert loss == "l1" or towards_real is None  # the real image is a constant of every loss; L1's slope has no way on
    assert not any(p.requires_grad for p in perceptual.parameters())


DP = ("down.", "up.")
DISCRIMINATOR_LOSSES = [
    ("dp", "pixel", {}, (*DP, "to_logits.")),
    ("oasis", "pixel", {}, (*DP, "to_logits.")),
    ("dp", "labelmix", {}, (*DP, "to_logits.")),
    ("oasis", "labelmix", {}, (*DP, "to_logits.")),
    ("dp", "patch", {"patch_at": "encoder"}, ("down.", "heads.")),
    ("dp", "patch", {"patch_at": "decoder"}, ("down.", "up.0.", "up.1.", "heads.")),
    ("dp", "patch", {"patch_at": "both"}, ("down.", "up.0.", "up.1.", "heads.")),
    ("patch", "patch", {}, ("networks.", "heads.")),
]


@pytest.mark.parametrize(("kind", "loss", "changes", "expected"), DISCRIMINATOR_LOSSES)
def test_each_discriminator_loss_trains_its_part_of_the_discriminator(
    kind: str, loss: str, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    s = settings(discriminator=kind, **{**ROWS[kind], **changes, "losses": {**NONE, loss: 1.0}})
    generator, discriminator, _ = networks(s)
    images, labels, noise = batch()
    module = DiscriminatorLoss(discriminator, s)
    table = torch.tensor([True, False, True, False, True])
    fake = generator(labels, noise)
    total, terms = module(images, fake.detach(), labels, torch.ones(CLASSES), table)
    assert {term.split("_")[1] for term in terms} == {loss}
    assert reached(total, discriminator) == [parts(discriminator, *expected)]


@pytest.mark.parametrize("loss", ["feature", "perceptual", "l1"])
def test_losses_of_the_generator_leave_the_discriminator_alone(loss: str) -> None:
    s = settings(losses={**NONE, loss: 1.0})
    _, discriminator, _ = networks(s)
    images, labels, _ = batch()
    total, terms = DiscriminatorLoss(discriminator, s)(
        images, -images, labels, torch.ones(CLASSES), torch.ones(CLASSES).bool()
    )
    assert terms == {}
    assert not total.requires_grad


@pytest.mark.parametrize("patch_at", ["encoder", "both"])
def test_a_released_patch_loss_is_logged_and_moves_nothing(patch_at: str) -> None:
    """Beside the other losses its weight changes no bit; alone, it has no gradient at all."""
    values, states = [], []
    for patch in (1.0, 100.0):
        step = make_step(settings(patch_gradient="released", patch_at=patch_at, losses=LossWeights(patch=patch)))
        heads = [p.clone() for p in step.discriminator.heads.parameters()]
        (terms,) = run(step)
        values.append((terms["G_patch"], terms["D_patch"]))
        states.append({**step.generator.state_dict(), **step.discriminator.state_dict()})
        assert all(torch.equal(a, b) for a, b in zip(heads, step.discriminator.heads.parameters(), strict=True))
    assert all(b == pytest.approx(100 * a, rel=1e-4) != 0 for a, b in zip(*values, strict=True))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_patch_loss_that_is_kept_does_move_the_networks() -> None:
    states = []
    for patch in (1.0, 100.0):
        step = make_step(settings(losses=LossWeights(patch=patch)))
        run(step)
        states.append(step.generator.state_dict())
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items())


VARIANTS: list[dict[str, Any]] = [
    *({"generator": g, "discriminator": d, **ROWS[d]} for g, d in product(GENERATORS, DISCRIMINATORS)),
    {"concat_s0": False},
    {"patch_gradient": "released"},
    {"discriminator_spectral_norm": False},
    *({"patch_at": part} for part in ("none", "decoder", "both")),
    *({"feature_at": part} for part in ("none", "encoder", "both")),
    *({"losses": {loss: 0.0}} for loss in ("patch", "feature", "labelmix")),
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_trains(changes: dict[str, Any]) -> None:
    """Every parameter that is trained gets its gradient: DistributedDataParallel would wait for it."""
    s = settings(**changes)
    check_losses(s)
    step = make_step(s)
    missing: list[str] = []

    def spy(network: nn.Module, update: Callable[[], bool]) -> bool:
        missing.extend(n for n, p in network.named_parameters() if p.requires_grad and p.grad is None)
        return update()

    for engine, network in ((step.generator_engine, step.generator), (step.discriminator_engine, step.discriminator)):
        engine.step = partial(spy, network, engine.step)  # type: ignore[method-assign]
    for terms in run(step, steps=2):
        assert all(math.isfinite(value) for value in terms.values())
    assert missing == []
    assert step.skipped == 0

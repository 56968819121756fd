"""One training step: what it trains, what it leaves alone, and golden losses against silent change."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dpgan.config import LossWeights, TrainSettings
from dpgan.models.discriminators import build_discriminator
from dpgan.models.generators import build_generator
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from dpgan.training.step import TrainingStep
from dpgan.training.strategy import DDPEngine

CLASSES = 5
CPU = torch.device("cpu")


def settings(**changes: Any) -> TrainSettings:
    base = {"preset": "test", "images": 8, "batch": 2, "generator_width": 2, "pyramid_width": 4, "noise_channels": 3,
            "discriminator_width": 2, "ema": 0.5, "lr_generator": 1e-2, "lr_discriminator": 1e-2}  # fmt: skip
    return TrainSettings.model_validate({**base, **changes})


def make_step(s: TrainSettings) -> TrainingStep:
    torch.manual_seed(0)
    generator = build_generator(**s.generator_arguments(CLASSES))
    discriminator = build_discriminator(**s.discriminator_arguments(CLASSES))
    average = copy.deepcopy(generator).requires_grad_(False)
    adam = partial(torch.optim.Adam, betas=(0.0, 0.999))
    generator_loss = GeneratorLoss(generator, discriminator, None, s)
    return TrainingStep(
        DDPEngine(generator_loss, adam(generator.parameters()), CPU),
        DDPEngine(DiscriminatorLoss(discriminator, s), adam(discriminator.parameters()), CPU),
        generator,
        discriminator,
        average,
        s,
        torch.tensor([True, False, False, False, False]),
        partial(torch.autocast, "cpu", torch.bfloat16, enabled=False),
    )


def run(step: TrainingStep, steps: int = 1, sizes: list[int] | None = None) -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    labels = torch.randint(0, CLASSES, (2, 8, 8), generator=generator, dtype=torch.uint8)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.randn(2, 2, 3, generator=generator)
    mixed = torch.tensor([True, False, True, False, True])
    results = []
    for number in range(steps):
        terms = step(images, labels, lambda draw: noise[draw], mixed, number / 8, sizes)
        results.append({name: float(value) for name, value in terms.items()})
    return results


def test_golden_losses() -> None:
    """Three steps at a fixed seed, fp32 on the CPU. A refactor leaves these numbers as they are."""
    first, _, third = run(make_step(settings(lr_generator=1e-5, lr_discriminator=4e-5)), 3)
    for terms, golden in ((first, GOLDEN_FIRST), (third, GOLDEN_THIRD)):
        assert terms == pytest.approx(golden, rel=2e-3, abs=1e-5)


GOLDEN_FIRST = {
    "G_total": 1.79905,
    "G_pixel": 1.79175,
    "G_patch": -2.15401e-06,
    "G_feature": 0.00729889,
    "D_total": 5.58329,
    "D_pixel_real": 1.79151,
    "D_pixel_fake": 1.79179,
    "D_patch": 1.99999,
    "D_labelmix": 7.04391e-07,
}
GOLDEN_THIRD = {
    "G_total": 1.80207,
    "G_pixel": 1.79177,
    "G_patch": -9.19147e-06,
    "G_feature": 0.0103053,
    "D_total": 5.58299,
    "D_pixel_real": 1.79141,
    "D_pixel_fake": 1.79166,
    "D_patch": 1.99992,
    "D_labelmix": 1.18244e-06,
}


def test_totals_are_the_sums_of_their_terms() -> None:
    (terms,) = run(make_step(settings()))
    for network in "GD":
        parts = [v for k, v in terms.items() if k.startswith(network) and not k.endswith("total")]
        assert terms[f"{network}_total"] == pytest.approx(sum(parts), rel=1e-5)


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_each_update_trains_its_own_network_only() -> None:
    s = settings()
    step = make_step(s)
    before = weights(step.discriminator)
    seen: dict[str, Any] = {}
    update = step.generator_engine.step

    def spy() -> bool:
        seen["no gradient"] = all(p.grad is None for p in step.discriminator.parameters())
        seen["moved"] = all(p.grad is not None for p in step.generator.parameters())
        moved = update()
        seen["same"] = all(torch.equal(p, before[n]) for n, p in step.discriminator.named_parameters())
        seen["generator"] = weights(step.generator)
        return moved

    step.generator_engine.step = spy  # type: ignore[method-assign]
    run(step)
    assert seen["same"]
    assert seen["no gradient"]
    assert seen["moved"]
    assert all(torch.equal(p, seen["generator"][n]) for n, p in step.generator.named_parameters())
    moved = {n for n, p in step.discriminator.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in before if "weight" in n} <= moved


def test_the_patch_loss_trains_the_patch_heads() -> None:
    """The released code adds it as a plain number: its heads never train (paper-vs-code 1)."""
    step = make_step(settings(losses=LossWeights(pixel=0, feature=0, labelmix=0)))
    before = weights(step.discriminator.heads)
    run(step)
    moved = {n for n, p in step.discriminator.heads.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in before if n.endswith("weight")} <= moved


def test_the_average_follows_the_generator() -> None:
    step = make_step(settings(ema=0.5))
    start = weights(step.average)
    run(step)
    for name, p in step.generator.named_parameters():
        torch.testing.assert_close(step.average.get_parameter(name), (start[name] + p.detach()) / 2)


def test_rates_fall_to_zero_after_decay_from() -> None:
    step = make_step(settings(decay_from=0.5))
    rates = []
    for progress in (0.0, 0.49, 0.75, 1.0):
        step._set_rates(progress)
        rates.append(step.generator_engine.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 0.0])


def test_an_overflow_leaves_everything_as_it_was_and_is_counted() -> None:
    """fp16's loss scale is too large here, so that all gradients are inf; then it fits."""
    step = make_step(settings())
    for engine in (step.generator_engine, step.discriminator_engine):
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=3e38)  # type: ignore[attr-defined]
    networks = {"generator": step.generator, "discriminator": step.discriminator, "average": step.average}
    before = {name: weights(network) for name, network in networks.items()}
    terms = run(step)[0]
    assert all(math.isfinite(value) for value in terms.values())
    assert step.skipped == 2
    for name, network in networks.items():
        assert all(torch.equal(p, before[name][key]) for key, p in network.named_parameters()), name
    assert not step.generator_engine.optimizer.state
    assert all(p.grad is None for network in networks.values() for p in network.parameters())

    for engine in (step.generator_engine, step.discriminator_engine):
        engine.scaler.update(256.0)  # type: ignore[attr-defined]
    run(step)
    assert step.skipped == 2
    for name, network in networks.items():
        assert any(not torch.equal(p, before[name][key]) for key, p in network.named_parameters()), name


def test_the_loss_scale_is_part_of_the_state() -> None:
    def engine() -> DDPEngine:
        module = torch.nn.Linear(2, 1)
        return DDPEngine(module, torch.optim.Adam(module.parameters(), fused=True), CPU, fp16=True)

    ours, other = engine(), engine()
    ours.scaler.load_state_dict({**ours.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5})
    other.load(ours.state())
    assert other.scaler.state_dict() == ours.scaler.state_dict()


@pytest.mark.parametrize("shared", [True, False])
def test_micro_batches_sum_to_the_batch(shared: bool) -> None:
    """Without BatchNorm, which sees the micro-batch, they would be equal: here it does not move."""
    whole, cut = (make_step(settings(shared_fake=shared)) for _ in range(2))
    for step in (whole, cut):
        for network in (step.generator, step.discriminator):
            network.eval()
    expected, ours = run(whole)[0], run(cut, sizes=[1, 1])[0]
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for engine, other in ((whole.generator_engine, cut.generator_engine),
                          (whole.discriminator_engine, cut.discriminator_engine)):  # fmt: skip
        state = other.state()
        for key, value in engine.state().items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_fake_is_drawn_once(shared: bool) -> None:
    step = make_step(settings(shared_fake=shared))
    calls = []
    step.generator.register_forward_hook(lambda *_: calls.append(1))
    run(step)
    assert len(calls) == (1 if shared else 2)

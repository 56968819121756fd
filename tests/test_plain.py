"""The networks and the step as they are, against DP-GAN written layer by layer; networks in fp32 against it in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import PlainDiscriminator, PlainGenerator, PlainTraining
from torch import Tensor, nn

from dpgan.config import RunSettings, TrainSettings
from dpgan.evaluation.efficiency import blocks_of_labels
from dpgan.models.discriminators import DiscriminatorOutput, DPDiscriminator
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import DPGenerator
from dpgan.models.generators.blocks import spread
from dpgan.models.layers import SpectralNorm
from dpgan.models.official import official_views
from dpgan.training.assemble import Training, assemble

CLASSES, SIZE = 5, (64, 128)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def inputs(dtype: torch.dtype, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Labels uint8 [2, H, W], noise [2, 4], images in (-1, 1)."""
    random = torch.Generator().manual_seed(1)
    labels = blocks_of_labels(CLASSES, size, 2, random)
    noise = torch.randn(2, 4, generator=random).to(dtype)
    return labels, noise, (torch.rand(2, 3, *size, generator=random) * 2 - 1).to(dtype)


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    return F.one_hot(labels.long(), CLASSES).movedim(-1, 1).to(dtype)


def lively(module: nn.Module) -> nn.Module:
    """Weights that leave a signal: those a training starts from paint everything grey."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    for name, norm in module.named_modules():
        if isinstance(norm, SpectralNorm):
            for _ in range(15):
                norm.iterate(module.get_parameter(name.removesuffix("0") + "original"))
    return module


def same_weights(plain: nn.Module, ours: nn.Module) -> None:
    """`plain` gets the weights of `ours`, whose names for the statistics of norm_s are those of norm_0."""
    state = dict(official_views(ours.state_dict()))
    state |= {k.replace("norm_0", "norm_s"): v for k, v in state.items() if "norm_0.first_norm" in k}
    plain.load_state_dict({k: v for k, v in state.items() if k in plain.state_dict()})


def pair(kind: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Our network and the plain one, of the same weights."""
    torch.manual_seed(0)
    ours: nn.Module
    plain: nn.Module
    if kind == "generator":
        ours, plain = DPGenerator(CLASSES, 4, 2, 8), PlainGenerator(CLASSES, 4, 2, 8)
    else:
        ours, plain = DPDiscriminator(CLASSES, width=4), PlainDiscriminator(CLASSES, width=4)
    ours, plain = lively(ours).to(dtype), plain.to(dtype)
    labels, noise, images = inputs(dtype)
    recollect_statistics(ours, [(labels, noise) if kind == "generator" else (images, labels)])
    same_weights(plain, ours)
    return ours, plain


def assert_close(ours: Tensor, plain: Tensor, tolerance: float, name: str = "") -> None:
    """Equal to `tolerance` times the largest number."""
    scale = plain.abs().max().item()
    torch.testing.assert_close(
        ours.double(), plain, rtol=0, atol=tolerance * max(scale, 1e-6), msg=lambda m: f"{name}: {m}"
    )


def assert_same_gradients(ours: nn.Module, plain: nn.Module, tolerance: float) -> None:
    """By their norms: in fp32 a sum near 0 falls on the other side of a LeakyReLU here and there."""
    found = official_views({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= tolerance * (10 * gradient.norm() + whole), name


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("training", [True, False])
def test_the_generator(dtype: torch.dtype, training: bool) -> None:
    ours, plain = pair("generator", dtype)
    labels, noise, images = inputs(dtype)
    painted = ours.train(training)(labels, noise)
    expected = plain.double().train(training)(one_hot(labels, torch.float64), spread(noise.double(), SIZE))
    assert expected.std() > 0.1, "a picture"
    assert_close(painted, expected, TOLERANCES[dtype])
    for photo in (painted, expected):
        (photo * images).mean().backward()
    assert_same_gradients(ours, plain, TOLERANCES[dtype])


def without_kink(x: Tensor, slope: float = 0.01, inplace: bool = False) -> Tensor:
    return slope * x + (1 - slope) * F.softplus(x)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("training", [True, False])
def test_the_discriminator(dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 256x256: at less the heads' BatchNorm has so few pixels that its gradient is only rounding errors."""
    if dtype == torch.float32:  # here and there a sum near 0 falls on the other side of the kink
        for name in ("leaky_relu", "leaky_relu_"):
            monkeypatch.setattr(F, name, without_kink)
    ours, plain = pair("discriminator", dtype)
    _, _, images = inputs(dtype, (256, 256))
    outputs: list[DiscriminatorOutput] = []
    gradients = []
    for network, seen in ((ours, images), (plain.double(), images.double())):
        seen = seen.clone().requires_grad_()
        output = network.train(training)(seen)
        parts = [output.logits, *output.patches, *output.features]
        torch.stack([part.square().mean() for part in parts]).sum().backward()
        outputs.append(output)
        assert seen.grad is not None
        gradients.append(seen.grad)
    for found, expected in zip(*([o.logits, *o.patches, *o.features] for o in outputs), strict=True):
        assert expected.abs().max() > 0.1
        assert_close(found, expected, TOLERANCES[dtype])
    found, expected = gradients
    assert (found - expected).norm() <= TOLERANCES[dtype] * expected.norm()
    assert_same_gradients(ours, plain, TOLERANCES[dtype])


STEP = TrainSettings.model_validate({
    "preset": "test", "images": 100, "batch": 2, "generator_width": 2, "pyramid_width": 8, "noise_channels": 4,
    "discriminator_width": 4, "ema": 0.5, "shared_fake": False, "feature_matching": "mean",
    "lr_generator": 1e-3, "lr_discriminator": 1e-3,
})  # fmt: skip


def assembled(precision: str, device: torch.device) -> Training:
    """A training of `STEP` as `dpgan train` assembles it, with the weights of `pair`."""
    settings = STEP.model_copy(update={"precision": precision})
    training = assemble(settings, RunSettings(), torch.arange(CLASSES) == 0, 0, device)
    generator, discriminator = (pair(kind, torch.float32)[0].state_dict() for kind in ("generator", "discriminator"))
    training.generator.load_state_dict(generator)
    training.average.load_state_dict(generator)
    training.discriminator.load_state_dict(discriminator)
    return training


def test_the_step() -> None:
    """Losses of three alternating iterations, and where they lead."""
    s = STEP
    plain_generator, plain_discriminator = (pair(kind, torch.float32)[1] for kind in ("generator", "discriminator"))
    labels, noise, images = inputs(torch.float32)
    mixed = torch.tensor([True, False, True, False, True])
    training = assembled("fp32", torch.device("cpu"))
    plain = PlainTraining(
        plain_generator, plain_discriminator, copy.deepcopy(plain_generator), s.losses,
        (s.lr_generator, s.lr_discriminator), (s.beta1_generator, s.beta2), s.ema,
    )  # fmt: skip
    noises = noise, noise.flip(0)
    for _ in range(3):
        ours = training.step(images, labels, noises.__getitem__, mixed, 0.0)
        expected = plain.step(
            images, one_hot(labels, torch.float32), tuple(spread(z, SIZE) for z in noises), mixed, torch.float32
        )
        assert {name: ours[name].item() for name in expected} == pytest.approx(expected, rel=1e-3)

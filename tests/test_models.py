"""The networks: sizes, the rearrangements against their plain forms, averaging, and literals of a fixed seed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dpgan.models.discriminators import Discriminator, DPDiscriminator, Part, PatchDiscriminator, PatchHead
from dpgan.models.ema import recollect_statistics, update_ema
from dpgan.models.generators import GENERATORS, DPGenerator, build_generator
from dpgan.models.generators.blocks import spread
from dpgan.models.layers import BatchNorm, SpectralNorm, spectral_norm


def inputs(size: tuple[int, int] = (64, 96), batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """labels uint8 of five classes, noise of 64 channels, images."""
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (batch, *size), generator=g, dtype=torch.uint8)
    return labels, torch.randn(batch, 64, generator=g), torch.rand(batch, 3, *size, generator=g) * 2 - 1


@pytest.fixture
def generator() -> DPGenerator:
    torch.manual_seed(0)
    return DPGenerator(5, width=1)


@pytest.fixture
def discriminator() -> DPDiscriminator:
    torch.manual_seed(0)
    return DPDiscriminator(5, width=2)


def millions(model: nn.Module) -> float:
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


PARAMETERS = {  # millions, by number of classes; SPADE's 36th is the edge map of its own code
    "dp": {35: 69.51, 151: 70.62},
    "oasis": {35: 71.11, 151: 74.31},
    "spade": {35: 93.02, 36: 93.05, 151: 96.49},
}


def test_networks_have_the_papers_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpectralNorm, "iterate", lambda *_: None)  # slow on meta, and without parameters
    with torch.device("meta"):
        for kind, expected in PARAMETERS.items():
            assert {n: millions(build_generator(kind, num_classes=n)) for n in expected} == expected
        assert millions(DPDiscriminator(35)) == 22.92
        assert millions(DPDiscriminator(35, patch_at="none")) == 22.25


SIZES = [(32, 32), (32, 64), (64, 64), (96, 128), (32, 160)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_take_any_multiple_of_32(kind: str, size: tuple[int, int]) -> None:
    model = build_generator(kind, num_classes=5, width=1, pyramid_width=4)
    labels, noise, _ = inputs(size)
    images = model(labels, noise)
    assert images.shape == (2, 3, *size)
    assert images.abs().max() < 1
    images.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", ["none", "encoder", "decoder", "both"])
def test_the_dp_discriminator_takes_any_multiple_of_32(part: Part, size: tuple[int, int]) -> None:
    model = DPDiscriminator(5, width=2, patch_at=part, feature_at=part)
    output = model(inputs(size)[2])
    assert output.logits.shape == (2, 6, *size)
    halves = {"none": 0, "both": 2}.get(part, 1)
    assert [p.shape[:2] for p in output.patches] == [(2, 1)] * 2 * halves
    assert len(output.features) == 5 * halves
    if part in ("decoder", "both"):
        assert output.features[-1].shape == (2, 2, *size)
    if part in ("encoder", "both"):
        assert output.features[0].shape == (2, 4, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("size", SIZES)
def test_the_patch_discriminator_scores_two_scales(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(5, width=2)
    labels, _, images = inputs(size)
    output = model(images, labels)
    assert output.logits.numel() == 0
    assert [len(output.features), len(output.patches)] == [8, 2]
    first, second = output.patches
    assert first.shape[2] > second.shape[2]
    assert model(images, labels, heads=False).patches == []
    other = model(images, (labels + 1) % 5)  # it is conditioned on the labels
    assert not torch.equal(other.patches[0], first)


@pytest.mark.parametrize("kind", GENERATORS)
def test_spatial_noise_that_is_constant_equals_a_vector(kind: str) -> None:
    torch.manual_seed(0)
    model = build_generator(kind, num_classes=5, width=1).eval()
    with torch.no_grad():
        model.get_parameter("to_rgb.weight").mul_(1000)  # the initial weights are so small that every photo is grey
        labels, noise, _ = inputs()
        painted = model(labels, noise)
        torch.testing.assert_close(model(labels, spread(noise, (64, 96))), painted, rtol=1e-3, atol=1e-5)
        assert torch.equal(model(labels, -noise), painted) == (kind == "spade")


def test_labels_of_either_dtype(generator: DPGenerator) -> None:
    labels, noise, _ = inputs()
    with torch.no_grad():
        assert torch.equal(generator.eval()(labels, noise), generator(labels.long(), noise))


def test_without_heads_the_logits_are_the_same(discriminator: DPDiscriminator) -> None:
    _, _, images = inputs()
    with torch.no_grad():
        output = discriminator.eval()(images, heads=False)
        assert output.patches == []
        assert torch.equal(output.logits, discriminator(images).logits)


def test_spectral_norm_finds_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    conv = spectral_norm(nn.Conv2d(6, 8, 3))
    for _ in range(50):
        weight = conv.weight
    assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.weight.dtype == torch.float32
    state = copy.deepcopy(conv.state_dict())
    conv.eval()(torch.randn(1, 6, 8, 8))
    assert all(torch.equal(v, state[k]) for k, v in conv.state_dict().items())


def test_spectral_norm_survives_two_forwards_before_backward(discriminator: DPDiscriminator) -> None:
    _, _, images = inputs()
    (discriminator(images).logits.mean() - discriminator(-images).logits.mean()).backward()


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = DPGenerator(5, width=8)
    stem = model.stem.weight
    assert stem.std().item() == pytest.approx(0.02 * (2 / (9 * (69 + 128))) ** 0.5, rel=0.05)
    gamma = model.blocks[0].modulation.weight[:128]  # drawn as a convolution of its own
    assert gamma.std().item() == pytest.approx(0.02 * (2 / (9 * (128 + 128))) ** 0.5, rel=0.05)
    norm = model.pyramid[1].norm
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("kind", GENERATORS)
def test_bf16_autocast_stays_close(kind: str) -> None:
    torch.manual_seed(0)
    model = build_generator(kind, num_classes=5, width=1).eval()
    labels, noise, _ = inputs()
    with torch.no_grad():
        exact = model(labels, noise)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(labels, noise)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("model", [DPDiscriminator, PatchDiscriminator])
def test_discriminators_in_bf16_stay_close(model: type[Discriminator]) -> None:
    torch.manual_seed(0)
    discriminator = model(5, width=4).eval()
    labels, _, images = inputs()
    with torch.no_grad():
        exact = discriminator(images, labels)
        with torch.autocast("cpu", torch.bfloat16):
            half = discriminator(images, labels)
    for a, b in zip([*half.patches, *half.features], [*exact.patches, *exact.features], strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05 * float(b.abs().max()))


def test_ema_averages_parameters_and_copies_buffers(generator: DPGenerator) -> None:
    average = copy.deepcopy(generator)
    generator.train()(*inputs()[:2])
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1.0)
    before = [p.clone() for p in average.parameters()]
    update_ema(average, generator, decay=0.75)
    for old, new in zip(before, average.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    for ours, model in zip(average.buffers(), generator.buffers(), strict=True):
        assert torch.equal(ours, model)


def test_recollected_statistics_are_means_over_batches(generator: DPGenerator) -> None:
    labels, noise, _ = inputs(batch=4)
    generator.eval()
    vectors = {k: v.clone() for k, v in generator.named_buffers() if k.endswith((".u", ".v"))}
    recollect_statistics(generator, [(labels[:2], noise[:2]), (labels[2:], noise[2:])])

    first = generator.pyramid[0]
    with torch.no_grad():
        response = first.conv(labels, noise)
    expected = (response[:2].var((0, 2, 3)) + response[2:].var((0, 2, 3))) / 2
    torch.testing.assert_close(first.norm.running_var, expected)
    torch.testing.assert_close(first.norm.running_mean, response.mean((0, 2, 3)), rtol=1e-4, atol=1e-7)
    assert first.norm.num_batches_tracked == 2
    assert not any(m.training for m in generator.modules())
    assert {m.momentum for m in generator.modules() if isinstance(m, BatchNorm)} == {0.1}
    buffers = dict(generator.named_buffers())
    assert all(torch.equal(v, buffers[k]) for k, v in vectors.items())


def test_a_patch_head_on_a_single_pixel_has_the_gradients_of_fp32() -> None:
    """In bf16 oneDNN leaves most of the first convolution's unwritten, so memory is filled with NaN ahead."""
    torch.manual_seed(0)
    head = PatchHead(16, 2).eval()
    x = torch.randn(4, 16, 1, 1)
    gradients = []
    for enabled in (False, True):
        poison = [torch.full((n,), torch.nan, dtype=torch.bfloat16) for n in (64, 256, 288, 512, 1024) * 20]
        del poison
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            head(x).float().sum().backward()
        gradients.append(head[0].weight.grad.clone())
    exact, half = gradients
    assert exact.abs().max() > 0
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def test_spectral_norm_can_be_left_out() -> None:
    model = DPDiscriminator(5, width=2, spectral_norm=False)
    assert not any(isinstance(m, SpectralNorm) for m in model.modules())


def test_literals(generator: DPGenerator, discriminator: DPDiscriminator) -> None:
    """One training forward of each network, as numbers: any change of the mathematics shows here."""
    labels, noise, images = inputs()
    with torch.no_grad():
        fake = generator(labels, noise)
        output = discriminator(images)
    values = [
        fake.abs().mean(),
        output.logits.abs().mean(),
        output.patches[0].abs().mean(),
        output.features[0].abs().mean(),
    ]
    assert [v.item() for v in values] == pytest.approx([0.00365322, 0.00179247, 0.000177176, 0.0178895], rel=1e-4)

"""Each rearrangement of the networks against the layers that it stands for, forward and backward, in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpgan import losses
from dpgan.models.discriminators import DPDiscriminator, pooled_convolution, upsampled_convolution
from dpgan.models.ema import recollect_statistics
from dpgan.models.generators import build_generator
from dpgan.models.generators.blocks import LabelConv, lookup, modulation_kernels, spread, through
from dpgan.models.generators.dp import add_conv3x3_upsampled
from dpgan.models.generators.export import for_inference
from dpgan.models.layers import Conv1x1, SpectralNorm, batch_statistics, channels_last

CLASSES = 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def assert_same(ours: Callable[[], Tensor], plain: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
    """The same values, and the same gradients of all inputs."""
    values, expected = ours(), plain()
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    pull = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(values, inputs, pull), torch.autograd.grad(expected, inputs, pull), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(2, 2), (6, 10)])
def test_a_convolution_before_pooling(size: tuple[int, int]) -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1).double(), drawn(2, 3, *size)
    inputs = [x, *conv.parameters()]
    assert_same(lambda: pooled_convolution(x, conv), lambda: F.avg_pool2d(conv(x), 2), inputs)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_convolution_behind_upsampling(size: tuple[int, int]) -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1).double(), drawn(2, 3, *size)
    inputs = [x, *conv.parameters()]
    assert_same(lambda: upsampled_convolution(x, conv), lambda: conv(F.interpolate(x, scale_factor=2.0)), inputs)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_convolutions_behind_bilinear_upsampling(factor: int) -> None:
    x, weights, size = drawn(2, 3, 2, 5), [drawn(4, 3, 3, 3), drawn(2, 3, 3, 3)], (2 * factor, 5 * factor)
    outputs = [drawn(2, len(weight), *size) for weight in weights]

    def plain() -> Tensor:
        upsampled = F.interpolate(x, size=size, mode="bilinear")
        return torch.cat([o + F.conv2d(upsampled, w, padding=1) for o, w in zip(outputs, weights, strict=True)], dim=1)

    ours = lambda: torch.cat(add_conv3x3_upsampled(outputs, x, weights), dim=1)  # noqa: E731
    assert_same(ours, plain, [x, *weights, *outputs])


def test_gammas_from_zero_and_a_beta_through_the_shortcut() -> None:
    sizes = [3, 3, 2, 2]
    x, conv, kernel_s = drawn(2, 4, 5, 6), nn.Conv2d(4, 10, 3, padding=1).double(), drawn(6, 2, 1, 1)

    def plain() -> Tensor:
        gamma_0, beta_0, gamma_1, beta_1 = conv(x).split(sizes, dim=1)
        return torch.cat([1 + gamma_0, beta_0, 1 + gamma_1, F.conv2d(beta_1, kernel_s)], dim=1)

    def ours() -> Tensor:
        *kernels, last = modulation_kernels(conv, sizes)
        return torch.cat([F.conv2d(x, *kernel, padding=1) for kernel in [*kernels, through(kernel_s, last)]], dim=1)

    assert_same(ours, plain, [x, *conv.parameters(), kernel_s])


def label_maps(batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels uint8 [B, H, W], and one-hot [B, C, H, W]."""
    labels = torch.randint(CLASSES, (batch, *size), dtype=torch.uint8)
    return labels, F.one_hot(labels.long(), CLASSES).movedim(-1, 1).double()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (7, 5)])
def test_labels_looked_up(size: tuple[int, int]) -> None:
    labels, one_hot = label_maps(2, size)
    weight = drawn(4, CLASSES, 3, 3)
    assert_same(lambda: lookup(labels, weight), lambda: F.conv2d(one_hot, weight, padding=1), [weight])


@pytest.mark.parametrize("size", [(32, 64), (1, 2), (2, 2), (1, 1)])
@pytest.mark.parametrize("channels", [3, 0])
@pytest.mark.parametrize("spatial", [False, True])
def test_a_convolution_over_labels_and_noise(size: tuple[int, int], channels: int, spatial: bool) -> None:
    labels, one_hot = label_maps(2, size)
    noise = drawn(2, channels)
    conv = LabelConv(channels + CLASSES, 4, 3, padding=1).double()
    inputs = [*conv.parameters(), *([noise] if channels else [])]
    plain = lambda: nn.Conv2d.forward(conv, torch.cat([spread(noise, size), one_hot], dim=1))  # noqa: E731
    assert_same(lambda: conv(labels, spread(noise, size) if spatial else noise), plain, inputs)


def test_one_map_with_many_noises_and_many_maps_with_one() -> None:
    labels, _ = label_maps(3, (4, 6))
    noise = drawn(3, 2)
    conv = LabelConv(2 + CLASSES, 4, 3, padding=1).double()
    for maps, noises in ((labels[:1], noise), (labels, noise[:1])):
        torch.testing.assert_close(conv(maps, noises), conv(maps.expand(3, -1, -1), noises.expand(3, -1)))


@pytest.mark.parametrize("kind", ["dp", "oasis", "spade"])
@pytest.mark.parametrize("spatial", [False, True])
def test_a_generator_for_inference(kind: str, spatial: bool) -> None:
    generator = build_generator(kind, num_classes=CLASSES, width=2, pyramid_width=4).double()
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    labels, noise = label_maps(3, (32, 64))[0], torch.randn(3, 64, dtype=torch.float64)
    noise = spread(noise, (32, 64)) if spatial else noise
    recollect_statistics(generator.eval(), [(labels, noise)])
    state = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = for_inference(generator, torch.float64)
    assert not any(isinstance(m, nn.BatchNorm2d | SpectralNorm) for m in folded.modules())
    with torch.no_grad():
        expected, photos = generator(labels, noise), folded(labels, noise)
        assert expected.std() > 0.05
        torch.testing.assert_close(photos, expected, rtol=0, atol=1e-10)
        for_all = folded(labels[:1], noise)  # one map, many noises
        torch.testing.assert_close(for_all[:1], photos[:1], rtol=0, atol=1e-10)
        half = for_inference(generator, torch.bfloat16)(labels, noise.float())
        assert half.dtype == torch.float32
        assert (half - expected).abs().mean() < 0.1 * expected.std()
    assert all(torch.equal(state[key], value) for key, value in generator.state_dict().items()), "a copy"


def test_1x1_convolutions_as_products() -> None:
    conv, x = Conv1x1(3, 4).double(), drawn(2, 3, 5, 6)
    assert_same(lambda: conv(x), lambda: nn.Conv2d.forward(conv, x), [x, *conv.parameters()])


@pytest.mark.parametrize("normalised", [True, False])
def test_gradients_have_the_strides_of_their_weights(normalised: bool) -> None:
    """Those of several passes too, added up: torch's fused Adam and DDP read both as they lie in memory."""
    discriminator = DPDiscriminator(CLASSES, width=2, spectral_norm=normalised)
    generator = build_generator("dp", num_classes=CLASSES, width=2, pyramid_width=4)
    for network in (generator, discriminator):
        channels_last(network)
    labels, _ = label_maps(1, (64, 64))
    output = discriminator(generator(labels, torch.randn(1, 64)) + generator(labels, torch.randn(1, 64)))
    again = discriminator(torch.randn(1, 3, 64, 64))
    torch.stack([x.mean() for o in (output, again) for x in (o.logits, *o.patches)]).sum().backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("last", [True, False])
def test_the_gradient_of_a_weight_divided_by_its_norm(last: bool) -> None:
    weight = drawn(4, 3, 3, 3).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    norm = SpectralNorm(weight.detach()).double().eval()
    plain = lambda: weight / torch.dot(norm.u, weight.flatten(1) @ norm.v)  # noqa: E731
    assert_same(lambda: norm(weight), plain, [weight])


@pytest.mark.parametrize(("size", "batch"), [((256, 256), 1), ((20, 28), 3), ((1, 1), 2), ((5, 7), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_even_areas_are_exact(size: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
    """Of 256x256 pixels, half of them equal, torch's own statistics in fp32 lose all but three digits."""
    x = (torch.randn(batch, 3, *size) + 5).to(dtype).to(memory_format=torch.channels_last)
    x[:, :, size[0] // 2 :] = 3.3
    mean, var = batch_statistics(x)
    expected_var, expected_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, expected_mean, rtol=2e-6, atol=0)
    torch.testing.assert_close(var, expected_var, rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_by_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, _ = label_maps(2, (6, 7))
    logits = [torch.randn(2, CLASSES + 1, 6, 7, dtype=dtype, requires_grad=True) for _ in range(3)]
    weights, mask = torch.rand(CLASSES), torch.rand(2, 1, 6, 7) > 0.5

    def all_losses() -> list[Tensor]:
        real, fake, mixed = logits
        found = [
            losses.segmentation_loss(real, labels, weights),
            losses.fake_loss(fake),
            losses.labelmix_loss(mixed, real, fake, mask),
        ]
        return [*found, *torch.autograd.grad(torch.stack(found).sum(), logits)]

    whole = all_losses()
    monkeypatch.setattr(losses, "PIECE", 5 * (CLASSES + 1))  # 5 pixels of the 84, so that the last piece has less
    for found, expected in zip(all_losses(), whole, strict=True):
        torch.testing.assert_close(found, expected)

"""Our networks and losses against numbers of the paper's official implementation (random weights and inputs)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dpgan import losses
from dpgan.config import TrainSettings
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.files import import_network
from dpgan.models.generators import DPGenerator
from dpgan.models.official import official_views
from dpgan.training.objectives import DiscriminatorLoss, GeneratorLoss

FOLDER = Path(os.environ.get("DPGAN_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity vectors in {FOLDER} (DPGAN_PARITY)")

VOID = torch.arange(12) == 0
# With these random weights fp32 itself is this coarse: against fp64 the official output is off by 4.0e-5, ours by
# 3.1e-5 or more, as the CPU rounds. In training mode, where BatchNorm keeps activations small, both are within 2e-7.
EVAL_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "tensors.safetensors")


@pytest.fixture(scope="module")
def scalars() -> dict[str, Any]:
    return json.loads((FOLDER / "scalars.json").read_text())


@pytest.fixture
def generator() -> DPGenerator:
    return import_network(FOLDER / "generator.safetensors").module.eval()


@pytest.fixture
def discriminator() -> DPDiscriminator:
    return import_network(FOLDER / "discriminator_narrow.safetensors").module.eval()


def assert_close(ours: Tensor, official: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` times the largest official value."""
    scale = official.abs().max().item()
    torch.testing.assert_close(ours.detach(), official, rtol=0, atol=tolerance * max(scale, 1e-6))


def weights(tensors: dict[str, Tensor]) -> Tensor:
    return losses.class_weights(losses.class_counts(tensors["label"], 12), VOID)


def test_generator_eval(generator: DPGenerator, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert_close(generator(tensors["label"], tensors["z"]), tensors["g_out_eval"], EVAL_TOLERANCE)


def test_spatial_noise_that_is_constant_equals_a_vector(generator: DPGenerator, tensors: dict[str, Tensor]) -> None:
    noise = tensors["z"][:, :, None, None].expand(-1, -1, 64, 128)
    with torch.no_grad():
        assert_close(generator(tensors["label"], noise), tensors["g_out_eval"], EVAL_TOLERANCE)


@pytest.mark.parametrize("which", ["fake", "real"])
def test_discriminator_eval(discriminator: DPDiscriminator, tensors: dict[str, Tensor], which: str) -> None:
    images = tensors["g_out_eval" if which == "fake" else "image_real"]
    with torch.no_grad():
        output = discriminator(images)
    assert_close(output.logits, tensors[f"d_logits_{which}"])
    for i, patch in enumerate(output.patches):
        assert_close(patch, tensors[f"d_patch{i}_{which}"], 1e-4)
    for i, feature in enumerate(output.features):
        assert_close(feature, tensors[f"d_feat{i}_{which}"])


def test_one_training_forward(
    generator: DPGenerator, discriminator: DPDiscriminator, tensors: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        assert_close(generator.train()(tensors["label"], tensors["z"]), tensors["g_out_train"])
        output = discriminator.train()(tensors["image_real"])
    assert_close(output.logits, tensors["d_logits_real_train"])
    for i, patch in enumerate(output.patches):
        assert_close(patch, tensors[f"d_patch{i}_real_train"], 1e-4)

    buffers = load_file(FOLDER / "buffers_after_one_train_forward.safetensors")
    ours = {f"G.{k}": v for k, v in official_views(generator.state_dict()).items()}
    ours |= {f"D.{k}": v for k, v in official_views(discriminator.state_dict()).items()}
    for key, official in buffers.items():
        if key.endswith("first_norm.num_batches_tracked"):  # the official inner norm does not count
            continue
        assert_close(ours[key.replace("norm_s", "norm_0")], official, 2e-5)


def test_losses(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    def heads(which: str) -> list[Tensor]:
        return [tensors[f"d_patch{i}_{which}"] for i in range(2)]

    def features(which: str) -> list[Tensor]:
        return [tensors[f"d_feat{i}_{which}"] for i in range(5)]

    label, fake, real = tensors["label"], tensors["d_logits_fake"], tensors["d_logits_real"]
    alpha, mask = weights(tensors), tensors["labelmix_mask"].bool().unsqueeze(1)
    ours = {
        "G_pixel": losses.segmentation_loss(fake, label, alpha),
        "D_pixel_real": losses.segmentation_loss(real, label, alpha),
        "D_pixel_fake": losses.fake_loss(fake),
        "hinge_G": losses.patch_loss_generator(heads("fake")),
        "hinge_G_paper_eq7": losses.patch_loss_generator(heads("fake"), clamp=True),
        "fm_sum_code": losses.feature_matching_loss(features("fake"), features("real"), "sum"),
        "fm_mean_paper": losses.feature_matching_loss(features("fake"), features("real"), "mean"),
        "labelmix_mse": losses.labelmix_loss(tensors["d_logits_mix"], real, fake, mask),
    }
    for name, value in ours.items():
        assert value.item() == pytest.approx(scalars[name], rel=1e-5), name
    for i, (f, r) in enumerate(zip(features("fake"), features("real"), strict=True)):
        ours_i = losses.feature_matching_loss([f], [r], "mean").item()
        assert ours_i == pytest.approx(scalars[f"fm_layer{i}"], rel=1e-5)
    hinge = losses.patch_loss_discriminator(heads("real"), heads("fake")).item()
    assert hinge == pytest.approx(scalars["hinge_D_real"] + scalars["hinge_D_fake"], rel=1e-5)


def test_class_weights(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    alpha = weights(tensors)
    assert_close(alpha, torch.tensor(scalars["class_coefficients"]), 1e-6)
    assert_close(alpha[tensors["label"].long()], tensors["class_weight_map"], 1e-6)


def test_labelmix(discriminator: DPDiscriminator, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    mask = losses.labelmix_mask(tensors["label"], torch.tensor(scalars["labelmix_lut"]).bool())
    assert torch.equal(mask[:, 0], tensors["labelmix_mask"].bool())
    mixed = losses.labelmix(tensors["image_real"], tensors["g_out_eval"], mask)
    assert torch.equal(mixed, tensors["labelmix_image"])
    with torch.no_grad():
        output = discriminator(mixed, heads=False)
    assert_close(output.logits, tensors["d_logits_mix"])
    assert output.patches == []


# What was differentiated, by its name in scalars.json -> the settings that train it.
OFFICIAL = {"preset": "test", "images": 2, "batch": 2, "feature_matching": "sum"}
NONE = {"pixel": 0.0, "patch": 0.0, "feature": 0.0, "labelmix": 0.0}
GENERATOR_TOTALS: dict[str, dict[str, Any]] = {
    "G_total_fixed(pixel+hinge_G+fm_sum)": {},
    "G_total_released(pixel+fm_sum)": {"patch_gradient": "released"},
    "G_pixel": {"losses": {**NONE, "pixel": 1}},
    "G_hinge": {"losses": {**NONE, "patch": 1}},
    "G_fm_sum": {"losses": {**NONE, "feature": 1}},
}
DISCRIMINATOR_TOTALS: dict[str, dict[str, Any]] = {
    "D_total_fixed": {},
    "D_total_released": {"patch_gradient": "released"},
    "D_labelmix_x5": {"losses": {**NONE, "labelmix": 5}},
}


def assert_gradients(model: nn.Module, name: str, scalars: dict[str, Any], tolerance: float) -> None:
    """Every gradient's norm, and where the official gradient itself is there, every element of it."""
    ours = official_views({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    official = scalars["grad"][name]
    assert torch.stack([g.norm() for g in ours.values()]).norm().item() == pytest.approx(official["total"], rel=5e-5)
    norms = {key: norm for key, norm in official["per_tensor"].items() if norm is not None}
    assert ours.keys() == norms.keys()  # what gets no gradient there gets none here
    for key, norm in norms.items():
        assert ours[key].norm().item() == pytest.approx(norm, rel=tolerance, abs=1e-6 * official["total"]), key
    stored = name.partition("(")[0]
    for key, gradient in load_file(FOLDER / "grads.safetensors").items():
        if key.startswith(f"{stored}/"):
            assert_close(ours[key.partition("/")[2]], gradient, tolerance)


@pytest.mark.parametrize("name", GENERATOR_TOTALS)
def test_generator_gradients(
    generator: DPGenerator,
    discriminator: DPDiscriminator,
    tensors: dict[str, Tensor],
    scalars: dict[str, Any],
    name: str,
) -> None:
    s = TrainSettings.model_validate({**OFFICIAL, **GENERATOR_TOTALS[name]})
    loss = GeneratorLoss(generator, discriminator.requires_grad_(False), None, s)
    total, _, fake = loss(tensors["image_real"], tensors["label"], tensors["z"], weights(tensors))
    fake.retain_grad()
    total.backward()
    if "fixed" in name:
        assert_close(fake.grad, tensors["grad_G_total_wrt_fake"], 1e-4)
    # Against fp64, the official fp32 gradients are off by 6e-4, and so are ours: sums that nearly cancel.
    assert_gradients(generator, name, scalars, tolerance=1e-3)


@pytest.mark.parametrize("name", DISCRIMINATOR_TOTALS)
def test_discriminator_gradients(
    name: str, discriminator: DPDiscriminator, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    s = TrainSettings.model_validate({**OFFICIAL, **DISCRIMINATOR_TOTALS[name]})
    table = torch.tensor(scalars["labelmix_lut"]).bool()
    total, _ = DiscriminatorLoss(discriminator, s)(
        tensors["image_real"], tensors["g_out_eval"], tensors["label"], weights(tensors), table
    )
    total.backward()
    assert_gradients(discriminator, name, scalars, tolerance=1e-4)

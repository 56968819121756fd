"""Judges from folders of transformers: tiny random SegFormers and Mask2Formers stand in for published checkpoints."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from dpgan.config import JudgeSettings
from dpgan.errors import UserError
from dpgan.evaluation.judges import Judge, load_judge, make_judge, save_judge
from dpgan.evaluation.judges.base import OTHER
from dpgan.files import file_sha256
from dpgan.labels import load_card

CARD = load_card("cityscapes", ROOT / "data")
NAMES = [CARD.classes[i].name for i in CARD.evaluated]
KINDS = ["segformer", "mask2former"]
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def checkpoint(folder: Path, kind: str = "segformer", names: list[str] = NAMES) -> torch.nn.Module:
    """A random model, saved as transformers saves it."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if kind == "segformer":
        small = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
        model = SegformerForSemanticSegmentation(SegformerConfig(decoder_hidden_size=16, **small, **labels))
    else:
        backbone = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                              out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
        widths = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
        model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
            backbone_config=backbone, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
            num_attention_heads=2, dim_feedforward=16, num_queries=5, **widths, **labels,
        ))  # fmt: skip
    model.save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": DEVIATION, "size": {"height": 512, "width": 512}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.eval()


def settings(folder: Path, **changes: object) -> JudgeSettings:
    prefixes = [file_sha256(path)[:8] for path in sorted(folder.glob("*.safetensors"))]
    return JudgeSettings.model_validate({"kind": "transformers", "weights": folder, "sha256": prefixes, **changes})


def made(folder: Path, **changes: object) -> Judge:
    return make_judge(settings(folder, **changes), CARD, (np.empty(0), np.empty(0)), seed=0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a judge asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_reads_as_the_model_does(tmp_path: Path, kind: str, images: Tensor) -> None:
    model, judge = checkpoint(tmp_path / "model", kind), made(tmp_path / "model")
    assert judge.name == kind
    assert not judge.training
    pixels = images.add(1).mul(127.5).round() / 255 - torch.tensor(MEAN)[:, None, None]
    with torch.no_grad():
        output = model(pixels / torch.tensor(DEVIATION)[:, None, None])
    if kind == "segformer":
        votes = torch.nn.functional.interpolate(output.logits, (64, 96), mode="bilinear")
    else:  # section 3.4 of Cheng et al. (2021), an image and a pixel at a time
        masks = torch.nn.functional.interpolate(output.masks_queries_logits, (64, 96), mode="bilinear").sigmoid()
        classes = output.class_queries_logits.softmax(-1)[:, :, :19]
        votes = (classes[..., None, None] * masks[:, :, None]).sum(1)
    torch.testing.assert_close(judge.scores(images), votes, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(judge.predict(images).numpy(), CARD.evaluated[votes.argmax(1).numpy()])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_from_our_file_alone(tmp_path: Path, kind: str, images: Tensor) -> None:
    checkpoint(tmp_path / "model", kind)
    judge = made(tmp_path / "model", size=(32, 64))
    assert judge.name == f"{kind}_32"
    save_judge(judge, tmp_path / "judge.safetensors")
    (tmp_path / "model").rename(tmp_path / "away")
    loaded = load_judge(tmp_path / "judge.safetensors", CARD)
    assert loaded.name == judge.name
    read = judge.predict(images)
    assert read.shape == (2, 32, 64)
    assert torch.equal(loaded.predict(images), read)
    with pytest.raises(UserError, match="made for another label set"):
        load_judge(tmp_path / "judge.safetensors", load_card("camvid", ROOT / "data"))


def test_labels_are_matched_by_name(tmp_path: Path, images: Tensor) -> None:
    """Another order, and classes that the card does not have."""
    names = ["Curb", *reversed(NAMES), "Billboard"]
    model = checkpoint(tmp_path, names=names)
    judge = made(tmp_path)
    assert judge.table.tolist() == [OTHER, *reversed(CARD.evaluated), OTHER]
    assert model.config.num_labels == 21
    assert judge.predict(images).shape == (2, 64, 96)


def test_another_label_set_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, names=["background", "aeroplane", "bicycle"])
    with pytest.raises(UserError, match=r"the judge segformer was made for another label set.*does not know road"):
        made(tmp_path)


def shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.bin")


def lose(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop("decode_head.classifier.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def set_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "detr"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file; it must be the folder that"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{}"), "lacks 'image_mean'"),
        (set_type, "model_type 'detr'; judges are segformer and mask2former"),
        (shard, r"holds no \*\.safetensors, and pickles are not read"),
        (lose, r"without weights for 1 of its tensors, decode_head\.classifier\.weight the first"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_judge_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    checkpoint(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        made(tmp_path)


def test_a_folder_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.weights .*nowhere: no such folder"):
        made(tmp_path / "nowhere")
    checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"must hold 1, of model\.safetensors; none is published"):
        made(tmp_path, sha256=[])
    with pytest.raises(UserError, match=r"judge\.sha256 says 01234567"):
        made(tmp_path, sha256=["01234567"])

"""What all judges share: label sets that fit, weights that are those meant, one file that brings any of them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from raw_pairs import make_card
from safetensors.torch import save_file
from torch import Tensor

from dpgan.config import JudgeSettings
from dpgan.errors import UserError
from dpgan.evaluation.judges import drn, load_judge, make_judge, save_judge, upernet
from dpgan.evaluation.judges.base import OTHER, Judge, eight_bits, match, resize
from dpgan.evaluation.judges.trained import Trained
from dpgan.files import file_sha256
from dpgan.labels import Card, load_card

Published = tuple[JudgeSettings, Card]
NO_PHOTOS = (np.empty(0), np.empty(0))


def card(name: str) -> Card:
    return load_card(name, ROOT / "data")


def made(settings: JudgeSettings, of: Card) -> Judge:
    return make_judge(settings, of, NO_PHOTOS, seed=0)


def test_outputs_are_matched_by_name() -> None:
    table = match("x", ["Road ", "car, auto", "sky", "cloud"], make_card())
    assert table.tolist() == [1, OTHER, 0, OTHER]
    cityscapes = card("cityscapes")
    assert match("drn", drn.CLASSES[::-1], cityscapes).tolist() == cityscapes.evaluated[::-1].tolist()
    for name in ("ade20k", "ade20k-outdoor"):
        assert match("upernet", upernet.CLASSES, card(name)).tolist() == list(range(1, 151))
    assert match("drn", drn.CLASSES, card("toyscapes")).tolist() == cityscapes.evaluated.tolist()


def test_or_by_place_where_two_lists_differ_in_spelling() -> None:
    ade20k = card("ade20k")
    spelt = [*upernet.CLASSES]
    spelt[11], spelt[89], spelt[90] = "sidewalk, pavement", "television receiver", "plane"
    assert match("segformer", spelt, ade20k).tolist() == list(range(1, 151))
    spelt[0], spelt[1] = spelt[1], spelt[0]  # a name at another's place: another order, or another set
    with pytest.raises(UserError, match="it does not know television, airplane;"):
        match("segformer", spelt, ade20k)


@pytest.mark.parametrize(
    ("classes", "dataset", "unknown"),
    [
        (drn.CLASSES, "camvid", "pavement, tree, sign_symbol, pedestrian, bicyclist; its own are road, sidewalk"),
        (drn.CLASSES, "ade20k", "does not know floor, tree, ceiling, bed, windowpane and "),
        (upernet.CLASSES, "cityscapes", "does not know traffic sign, vegetation, terrain, rider, train and 1 more"),
        (upernet.CLASSES, "coco-stuff", "does not know motorcycle, train, "),
        ([f"LABEL_{i}" for i in range(19)], "cityscapes", "road, sidewalk, building, wall, fence and 14 more"),
    ],
)
def test_another_label_set_is_refused(classes: list[str], dataset: str, unknown: str) -> None:
    with pytest.raises(UserError, match="made for another label set") as error:
        match("x", classes, card(dataset))
    assert unknown in str(error.value)
    assert f"data/{dataset}/dataset.yaml" in str(error.value)


def test_pictures_are_rounded_as_png_files_are() -> None:
    values = torch.tensor([-1.2, -1.0, -0.999, 0.5, 1.0, 1.3])
    assert (eight_bits(values) * 255).round(decimals=4).tolist() == [0, 0, 0, 191, 255, 255]


def test_resizing_is_pillows() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    for size in ((10, 15), (40, 60), (20, 30)):
        expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        ours = resize(torch.from_numpy(pixels)[None, None], size)[0, 0].numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-5)


# A published judge in small: the same keys, thinner tensors.
@pytest.fixture(params=["drn105", "upernet101"])
def published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Published:
    torch.manual_seed(0)
    monkeypatch.setattr(drn, "CHANNELS", (2, 2, 4, 4, 4, 4, 4, 4))
    for module, depths in ((drn, (1, 1, 1, 2, 2, 1, 1, 1)), (upernet, (1, 2, 1, 1))):
        monkeypatch.setattr(module, "DEPTHS", depths)
    monkeypatch.setattr(upernet, "WIDTH", 2)
    monkeypatch.setattr(upernet, "PYRAMID", 4)
    monkeypatch.setattr(upernet, "SHORT_SIDES", (32, 64))
    monkeypatch.setattr(drn, "DRN105_SIZES", ((64, 128),))
    if request.param == "drn105":
        of = card("cityscapes")
        states = [drn.DRN105(of).state_dict()]
        path, files = tmp_path / "weights.pth", [tmp_path / "weights.pth"]
    else:
        of = card("ade20k")
        judge = upernet.UPerNet101(of)
        states = [judge.encoder.state_dict(), judge.decoder.state_dict()]
        path, files = tmp_path, [tmp_path / name for name in upernet.FILES]
    for state, file in zip(states, files, strict=True):
        # As old versions of torch wrote them: without counters, in one stream.
        kept = {key: value for key, value in state.items() if "num_batches" not in key}
        torch.save(kept, file, _use_new_zipfile_serialization=False)
    prefixes = [file_sha256(file)[:8] for file in files]
    return JudgeSettings(kind=request.param, weights=path, sha256=prefixes), of


def test_a_published_judge_comes_back_from_our_file(published: Published, tmp_path: Path) -> None:
    settings, of = published
    judge = made(settings, of)
    assert not judge.training
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors", of)
    assert (type(loaded), loaded.name) == (type(judge), judge.name)
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    read = judge.predict(images)
    assert read.dtype == torch.uint8
    assert torch.equal(loaded.predict(images), read)
    assert set(read.unique().tolist()) <= set(of.evaluated.tolist())
    with pytest.raises(UserError, match="made for another label set"):
        load_judge(tmp_path / "judge.safetensors", card("camvid"))


def test_pictures_are_read_alike_in_any_batch(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = made(*published)
    images = torch.rand(3, 3, 32, 64) * 2 - 1
    whole = judge.scores(images)
    one_by_one = torch.cat([judge.scores(image[None]) for image in images])
    torch.testing.assert_close(whole, one_by_one, rtol=1e-4, atol=1e-5)
    assert len(judge.predict(images)) == 3


def test_what_to_get_and_where(published: Published, tmp_path: Path) -> None:
    settings, of = published
    names = drn.FILES if settings.kind == "drn105" else upernet.FILES
    for weights, message in ((None, "needs judge.weights: get "), (tmp_path / "nowhere", "no such file; get ")):
        with pytest.raises(UserError, match=r"params\.yaml: judge") as error:
            made(settings.model_copy(update={"weights": weights}), of)
        assert message in str(error.value)
        assert all(name in str(error.value) for name in names)


def test_other_weights_are_refused_by_their_checksum(published: Published) -> None:
    settings, of = published
    with pytest.raises(UserError, match="if you trust where they are from, set") as error:
        made(settings.model_copy(update={"sha256": []}), of)
    assert str(settings.sha256) in str(error.value)
    wrong = [*settings.sha256[:-1], "01234567"]
    with pytest.raises(UserError, match=rf"sha256 begins with {settings.sha256[-1]}, judge\.sha256 says 01234567"):
        made(settings.model_copy(update={"sha256": wrong}), of)


def rename(state: dict[str, Tensor], key: str) -> None:
    state["module." + key] = state.pop(key)


def widen(state: dict[str, Tensor], key: str) -> None:
    state[key] = torch.zeros(3, *state[key].shape)


def add_code(state: dict[str, object], key: str) -> None:
    state[key] = print


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state, key: state.pop(key), "missing key"),
        (rename, "unexpected key 'module."),
        (widen, r"has shape \(3, .*, expected \("),
        (add_code, "holds more than tensors, or is damaged"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    published: Published, spoil: Callable[[dict[str, Tensor], str], None], message: str
) -> None:
    settings, of = published
    assert settings.weights is not None
    path = settings.weights if settings.kind == "drn105" else settings.weights / upernet.FILES[1]
    state = torch.load(path, weights_only=True)
    spoil(state, list(state)[3])
    torch.save(state, path)
    prefixes = [*settings.sha256[:-1], file_sha256(path)]
    with pytest.raises(UserError, match=message) as error:
        made(settings.model_copy(update={"sha256": prefixes}), of)
    assert str(path) in str(error.value)


def test_sizes_that_are_no_protocol_are_refused() -> None:
    with pytest.raises(UserError, match=r"the protocols of drn105 work at \[256, 512\] or \[1024, 2048\]"):
        made(JudgeSettings(kind="drn105", size=(512, 1024)), card("cityscapes"))
    with pytest.raises(UserError, match="upernet101 has five of its own"):
        made(JudgeSettings(kind="upernet101", size=(256, 256)), card("ade20k"))


def test_a_file_that_is_no_judge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match="is not there; `dvc repro judge`"):
        load_judge(path, make_card())
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a judge"):
        load_judge(path, make_card())
    save_judge(Trained(make_card()), path)
    assert [file.name for file in tmp_path.iterdir()] == ["judge.safetensors"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="not a judge's weights"):
        load_judge(path, make_card())

"""Every input of an identity is changed once: the identities of the table change, and no other.

A setting that is in no table fails `test_every_input_is_changed_once`: decide there what it is part of.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from dpgan import identities
from dpgan.config import EvaluateSettings, RunSettings, TrainSettings
from dpgan.data import prepare
from dpgan.data.facts import dataset_hash
from dpgan.data.prepare import _digest
from dpgan.evaluation import evaluate, objects, reference
from dpgan.evaluation.evaluate import protocol
from dpgan.evaluation.reference import References
from dpgan.labels import Card, ClassInfo, load_card

ALL = {"raw", "prepared", "features", "protocol", "run"}
DATA = ALL - {"raw"}  # the prepared data is part of all that comes after it
SCORES = {"features", "protocol"}


class Extractor:
    name, dimension, side, digest, device = "lite0", 3, 8, "weights", torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        return images.double().mean((2, 3))


def inputs() -> dict[str, Any]:
    """All that an identity may depend on, by group."""
    return {
        "pair": {"sample_id": "val/a", "image_sha256": "photo", "label_sha256": "map", "instance_sha256": "codes"},
        "prepare": {"resizing": "bicubic and nearest"},
        "card": load_card("toyscapes", ROOT / "data").model_dump(),
        "extractor": {"name": "lite0", "digest": "weights", "code": "code"},
        "photos": {"split": "val", "rows": [0, 1], "x": 1},
        "judge": {"name": "trained", "file": "weights and header"},
        "evaluate": EvaluateSettings(noise_seeds=2).model_dump(),
        "train": TrainSettings(preset="toyscapes", images=100, batch=4).model_dump(),
        "run": RunSettings().model_dump(),
        "params": {"seed": 0},
    }


def computed(given: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every identity, as the code that uses it computes it."""
    frame, card = pd.DataFrame([{**given["pair"], "sample_id": "train/0"}, given["pair"]]), Card(**given["card"])
    extractor = Extractor()
    extractor.name, extractor.digest = given["extractor"]["name"], given["extractor"]["digest"]
    patch.setattr(prepare, "resizing", lambda: given["prepare"]["resizing"])
    data_hash = _digest(frame, card)
    (folder / "judge").write_text(given["judge"]["file"])
    patch.setattr(reference, "file_sha256", lambda _: given["extractor"]["code"])
    settings = TrainSettings(**given["train"]).model_dump(mode="json")
    judge, scoring = identities.judge(folder / "judge"), EvaluateSettings(**given["evaluate"])
    scored = protocol(extractor, given["judge"]["name"], judge, data_hash, scoring, card)
    return {
        "raw": dataset_hash(frame),
        "prepared": data_hash,
        "features": str(References(folder, data_hash).path(extractor, given["photos"])),
        "protocol": identities.protocol_key(scored),
        "run": identities.run(identities.trains(settings, given["params"]["seed"], data_hash, card.digest)),
    }


# Group and name of an input: another value, and the identities that change with it.
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "pair.sample_id": ("val/b", ALL),
    "pair.image_sha256": ("other photo", ALL),
    "pair.label_sha256": ("other map", ALL),
    "pair.instance_sha256": ("other codes", ALL),
    "prepare.resizing": ("bilinear and nearest", DATA),
    "card.size": ((64, 64), DATA),
    # Of its digest are name, size and classes; the rest decides the pairs, if anything.
    "card.name": ("other", {"run"}),
    "card.title": ("Other", set()),
    "card.licence": ("other", set()),
    "card.obtain": ("elsewhere", set()),
    "card.layout": ({"image": "{split}/{id}.jpg", "label": "{split}/{id}.png"}, set()),
    "card.splits": ({"train": "training", "val": "validation"}, set()),
    "card.preset": ("camvid", set()),
    "card.encoding": ("palette", set()),
    "card.min_pairs": (9, set()),
    "card.max_faulty": (0.5, set()),
    "card.max_stretch": (2, set()),
    "card.select": ({"any": ["road"]}, set()),
    "card.other_editions": ({"*.gif": "old"}, set()),
    "card.toyscapes": ({"train": 9, "val": 9, "size": (32, 32)}, set()),
    "class.id": (200, DATA),
    "class.name": ("other", {"protocol", "run"}),
    "class.color": ((1, 2, 3), {"run"}),
    "class.evaluate": (None, {"protocol", "run"}),
    "class.thing": (None, {"run"}),
    "class.void": (None, {"protocol", "run"}),
    "extractor.name": ("inception", SCORES),
    "extractor.digest": ("other weights", SCORES),
    "extractor.code": ("other code", {"features"}),
    "photos.split": ("train", {"features"}),
    "photos.rows": ([0], {"features"}),
    "photos.x": (2, {"features"}),
    "judge.name": ("drn105_256", {"protocol"}),
    "judge.file": ("other weights", {"protocol"}),
    "evaluate.noise_seed": (1, {"protocol"}),
    "evaluate.noise_seeds": (3, {"protocol"}),
    "evaluate.resolutions": ((2,), set()),  # further scores, whose names say so
    "evaluate.lpips": ("weights", set()),
    "evaluate.objects": (True, {"protocol"}),
    "evaluate.inception_weights": ("file", set()),  # its digest is the extractor's
    "params.seed": (1, {"run"}),
    "train.preset": ("camvid", {"run"}),
    "train.images": (200, {"run"}),
    "train.batch": (8, {"run"}),
    "train.accumulate": (2, {"run"}),
    "train.generator": ("oasis", {"run"}),
    "train.discriminator": ("patch", {"run"}),
    "train.concat_s0": (False, {"run"}),
    "train.patch_at": ("both", {"run"}),
    "train.feature_at": ("both", {"run"}),
    "train.generator_width": (8, {"run"}),
    "train.pyramid_width": (8, {"run"}),
    "train.discriminator_width": (8, {"run"}),
    "train.discriminator_spectral_norm": (False, {"run"}),
    "train.noise_channels": (8, {"run"}),
    "train.losses": ({"l1": 3.0}, {"run"}),
    "train.feature_matching": ("sum", {"run"}),
    "train.patch_gradient": ("released", {"run"}),
    "train.patch_clamp": (True, {"run"}),
    "train.perceptual_network": ("vgg19", {"run"}),
    "train.perceptual_shift": (16, {"run"}),
    "train.shared_fake": (True, {"run"}),
    "train.lr_generator": (1e-3, {"run"}),
    "train.lr_discriminator": (1e-3, {"run"}),
    "train.beta1_generator": (0.9, {"run"}),
    "train.beta1_discriminator": (0.9, {"run"}),
    "train.beta2": (0.99, {"run"}),
    "train.init_gain": (1.0, {"run"}),
    "train.warmup_images": (100, {"run"}),
    "train.decay_from": (0.5, {"run"}),
    "train.ema": (0.99, {"run"}),
    "train.flip": (False, {"run"}),
    "train.holdout": (32, {"run"}),
    "train.evaluate_images": (500, {"run"}),
    "train.crop": ((32, 32), {"run"}),
    "train.precision": ("bf16", {"run"}),
    "train.fork": ("runs/other", {"run"}),
}
# How and where to run: rounding.
CHANGES |= {f"run.{name}": (value, set()) for name, value in {
    "workers": 1, "device": "cpu", "strategy": "deepspeed", "zero_stage": 1, "placement": "SPREAD",
    "cpus_per_worker": 2, "compile": True, "max_failures": 0, "hang_s": 60, "start_timeout_s": 60,
    "checkpoint_images": 1, "keep_last": 1, "keep_every": 1,
    "grace_s": 1, "log_images": 1, "data_cache": "folder", "vgg19": "file",
    "accept_code": "12345678",
}.items()}  # fmt: skip


def test_every_input_is_changed_once() -> None:
    groups = {
        "card": Card,
        "class": ClassInfo,
        "evaluate": EvaluateSettings,
        "train": TrainSettings,
        "run": RunSettings,
    }
    fields = {f"{group}.{name}" for group, model in groups.items() for name in model.model_fields}
    others = {f"{group}.{name}" for group, values in inputs().items() if group not in groups for name in values}
    assert set(CHANGES) == (fields | others) - {"card.classes"}


@pytest.mark.parametrize("name", CHANGES)
def test_an_input_changes_its_identities_only(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs()
    after = copy.deepcopy(before)
    (group, field), (value, expected) = name.split("."), CHANGES[name]
    if group == "class":
        # A class that is evaluated and a void one: a flag is turned around.
        row = next(row for row in after["card"]["classes"] if row["void" if field == "void" else "evaluate"])
        row[field] = not row[field] if value is None else value
    else:
        assert after[group][field] != value
        after[group][field] = value
    old, new = (computed(given, tmp_path, monkeypatch) for given in (before, after))
    assert {key for key in old if old[key] != new[key]} == expected


def test_what_is_countable_matters_where_objects_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs()
    before["evaluate"]["objects"] = True
    after = copy.deepcopy(before)
    after["card"]["classes"][0]["thing"] = not after["card"]["classes"][0]["thing"]
    old, new = (computed(given, tmp_path, monkeypatch) for given in (before, after))
    assert {key for key in old if old[key] != new[key]} == {"protocol", "run"}


def test_changed_code_is_another_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure, which is also that of the features that are kept, and the sizes of objects."""
    given = inputs()
    given["evaluate"]["objects"] = True
    before = computed(given, tmp_path, monkeypatch)
    for module, name, expected in (
        (evaluate, "MEASURE", {"protocol"}), (reference, "MEASURE", {"features"}), (objects, "LEAST", {"protocol"}),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 99)
            after = computed(given, tmp_path, patch)
        assert {key for key in after if before[key] != after[key]} == expected


def test_identities_are_the_same_everywhere() -> None:
    """Values that files of earlier versions hold."""
    pairs = identities.raw_pairs([("val/b", "1", "4"), ("train/a", "3", "5")])
    assert pairs == identities.raw_pairs([("train/a", "3", "5"), ("val/b", "1", "4")])
    assert pairs.startswith("c5ac4939")
    assert identities.prepared_data(pairs, b"\x00\x01", (32, 64), "filters").startswith("7b6db767")
    assert identities.run({"settings": {"b": [1, 2]}, "seed": 0}).startswith("ed2fe9d9")

"""Presets, and that every row of the paper's ablations is one setting away from any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpgan.checks import of_training
from dpgan.config import Params, RunSettings, TrainSettings, train_settings
from dpgan.errors import UserError
from dpgan.presets import PRESETS


def read(preset: str, **train: Any) -> TrainSettings:
    return train_settings(Params(dataset="x", raw="raw", train=train), preset, Path("params.yaml"))


def test_the_papers_rows() -> None:
    """paper-vs-code.md 18 to 21: rates, EMA and lambda_LM as the paper and its released code have them."""

    def row(preset: str) -> tuple[float, ...]:
        s = read(preset)
        return s.lr_generator, s.lr_discriminator, s.ema, s.losses.labelmix, s.images, s.batch

    cityscapes, ade20k, outdoor = 2975 * 200, 20210 * 200, 9649 * 200
    assert row("paper-cityscapes") == (1e-4, 4e-4, 0.9999, 5, cityscapes, 5)
    assert row("paper-ade20k") == (1e-4, 4e-4, 0.9999, 5, ade20k, 5)
    assert row("paper-ade20k-outdoor") == (1e-4, 4e-4, 0.9999, 5, outdoor, 5)
    assert row("released-cityscapes") == (2e-4, 2e-4, 0.999, 5, cityscapes, 5)
    assert row("released-ade20k") == (4e-4, 4e-4, 0.9999, 10, ade20k, 5)
    assert row("released-ade20k-outdoor") == (4e-4, 4e-4, 0.9999, 10, outdoor, 5)
    for name in PRESETS:
        s = read(name)
        assert (s.generator, s.discriminator, s.patch_at, s.feature_at) == ("dp", "dp", "encoder", "decoder")
        paper = not name.startswith("released")
        assert s.patch_gradient == ("keep" if paper else "released")
        if name.startswith(("paper", "released")):
            assert s.feature_matching == ("mean" if paper else "sum")
            assert (s.generator_width, s.pyramid_width, s.discriminator_width) == (64, 64, 64)
            assert (s.losses.pixel, s.losses.patch, s.losses.feature, s.losses.perceptual) == (1, 1, 1, 0)


ABLATIONS: list[dict[str, Any]] = [
    *({"generator": kind} for kind in ("dp", "oasis", "spade")),  # table 4a, and SPADE
    *({"discriminator": kind} for kind in ("dp", "oasis", "patch")),
    *({"patch_at": part} for part in ("none", "encoder", "decoder", "both")),  # table 4b
    *({"feature_at": part} for part in ("none", "encoder", "decoder", "both")),  # table 4c
    {"losses": {"labelmix": 0}},  # supplement, table 3
    {"concat_s0": False},
    {"patch_gradient": "released"},
    {"patch_clamp": True},
    {"losses": {"perceptual": 10}, "perceptual_network": "vgg19"},
]


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_ablation_is_one_setting_away(preset: str, changes: dict[str, Any]) -> None:
    s = read(preset, **changes)
    given = {key: value for key, value in changes.items() if key != "losses"}
    assert {key: getattr(s, key) for key in given} == given
    assert of_training(s, RunSettings(workers=1), (256, 512), pairs=100_000) == []


def test_a_discriminator_brings_its_losses_and_params_yaml_overrides_them() -> None:
    patch = read("released-ade20k", discriminator="patch")
    assert patch.losses.model_dump() == {"pixel": 0, "labelmix": 0, "patch": 1, "feature": 10, "perceptual": 0, "l1": 0}
    assert (patch.feature_matching, patch.patch_gradient, patch.lr_generator) == ("l1", "keep", 4e-4)
    changed = read("toyscapes", discriminator="patch", losses={"feature": 3}, feature_matching="mean")
    assert (changed.losses.feature, changed.losses.patch, changed.losses.l1) == (3, 1, 3)
    assert changed.feature_matching == "mean"
    oasis = read("paper-cityscapes", discriminator="oasis")
    assert (oasis.patch_at, oasis.feature_at, oasis.losses.labelmix) == ("none", "none", 5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"discriminator": "patch", "losses": {"labelmix": 5}}, "need a discriminator that labels pixels"),
        ({"discriminator": "patch", "losses": {"pixel": 1}}, "need a discriminator that labels pixels"),
        ({"discriminator": "patch", "patch_at": "both"}, "is an encoder alone"),
        ({"discriminator": "patch", "feature_at": "decoder"}, "is an encoder alone"),
        ({"discriminator": "patch", "losses": {"patch": 0}}, "losses.patch must be above 0"),
        ({"discriminator": "patch", "patch_gradient": "released"}, "patch_gradient keep"),
        ({"discriminator": "oasis", "patch_at": "encoder"}, "has no patch heads"),
        ({"losses": {"pixel": 0}}, "losses.pixel 0"),
        ({"generator": "oasis", "concat_s0": False}, "oasis has no s_0"),
        ({"losses": 3}, "losses"),
        ({"discriminator": ["dp"]}, "discriminator"),
    ],
)
def test_what_cannot_go_together_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: train: ") as error:
        read("paper-cityscapes", **changes)
    assert expected in str(error.value)

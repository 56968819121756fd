"""Checkpoints of the paper's official code -> our networks.

Two differences besides names: the gammas and betas of a block are one convolution here, and `norm_s` normalises the
same tensor as `norm_0`, so its statistics are not kept twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.generators import DPGenerator

M = TypeVar("M", bound=nn.Module)

NOISE_CHANNELS = 64  # of every official generator

# Our key -> theirs, by prefix; the first row that matches is taken.
_NAMES = [
    (r"^stem\.", "fc."),
    (r"^to_rgb\.", "conv_img."),
    (r"^pyramid\.(\d)\.conv\.", r"seg_pyrmid.\1.0."),
    (r"^pyramid\.(\d)\.norm\.", r"seg_pyrmid.\1.1."),
    (r"^blocks\.(\d)\.(norm_.)\.", r"body.\1.\2.first_norm."),
    (r"^blocks\.", "body."),
    (r"^down\.0\.conv_1\.", "body_down.0.conv1.0."),
    (r"^down\.(\d)\.conv_1\.", r"body_down.\1.conv1.1."),
    (r"^up\.(\d)\.conv_1\.", r"body_up.\1.conv1.2."),
    (r"^(down|up)\.(\d)\.conv_2\.", r"body_\1.\2.conv2.1."),
    (r"^(down|up)\.", r"body_\1."),
    (r"^heads\.", "dis."),
    (r"^to_logits\.", "layer_up_last."),
]


def load_official_generator(state: Mapping[str, Tensor]) -> DPGenerator:
    """The generator of an official state dict; its width and classes are read from the shapes.

    Raises UserError with the keys that are missing, unexpected or of the wrong shape.
    """
    width, inputs = _shape(state, "conv_img.weight")[1], _shape(state, "fc.weight")[1]
    if inputs <= NOISE_CHANNELS:
        raise UserError(f"official checkpoint: fc.weight has {inputs} input channels, {NOISE_CHANNELS} are noise")
    model = DPGenerator(inputs - NOISE_CHANNELS, NOISE_CHANNELS, width)
    remaining = dict(state)
    for key in state:
        if ".norm_s.first_norm." in key:
            duplicate, kept = remaining.pop(key), state.get(key.replace("norm_s", "norm_0"))
            if kept is None or not torch.allclose(duplicate, kept):
                raise UserError(f"official checkpoint: {key!r} differs from norm_0's; both normalise one tensor")
    return _load(model, remaining)


def load_official_discriminator(state: Mapping[str, Tensor]) -> DPDiscriminator:
    """The discriminator of an official state dict, as `load_official_generator`."""
    outputs, width = _shape(state, "layer_up_last.weight")[:2]
    return _load(DPDiscriminator(outputs - 1, width), state)


def official_views(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (a state dict, or gradients by parameter name) under their official names, as views."""
    views: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        modulation = re.fullmatch(r"blocks\.(\d)\.modulation\.(weight|bias)", key)
        if modulation:
            i, kind = modulation.groups()
            inner = tensors[f"blocks.{i}.conv_1.bias"].shape[0]
            shortcut = f"blocks.{i}.conv_s.parametrizations.weight.original" in tensors
            outer = (tensor.shape[0] // 2 - inner) // (2 if shortcut else 1)
            sizes = {"0": outer, "1": inner} | ({"s": outer} if shortcut else {})
            names = [f"body.{i}.norm_{n}.mlp_{part}.{kind}" for n in sizes for part in ("gamma", "beta")]
            views |= zip(names, tensor.split([c for c in sizes.values() for _ in "gb"]), strict=True)
        else:
            views[_official_name(key)] = tensor
    return views


def _official_name(key: str) -> str:
    key = key.replace(".parametrizations.weight.original", ".weight_orig")
    key = key.replace(".parametrizations.weight.0.", ".weight_")
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    raise KeyError(key)


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size:
    if key not in state:
        raise UserError(f"official checkpoint: no key {key!r}; is this the state dict of the right network?")
    return state[key].shape


def _load(model: M, state: Mapping[str, Tensor]) -> M:
    """Copy every tensor of an official state dict to its place; each key is used exactly once."""
    places = official_views(model.state_dict())
    faults = [f"missing key {key!r}" for key in places.keys() - state.keys()]
    faults += [f"unexpected key {key!r}" for key in state.keys() - places.keys()]
    faults += [
        f"{key!r} has shape {tuple(state[key].shape)}, expected {tuple(places[key].shape)}"
        for key in places.keys() & state.keys()
        if places[key].shape != state[key].shape
    ]
    if faults:
        raise UserError("official checkpoint does not fit:\n" + "\n".join(sorted(faults)))
    for key, place in places.items():
        place.copy_(state[key])
    return model

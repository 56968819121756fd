"""State dicts of the official DP-GAN and OASIS codes -> our networks.

Three differences besides names: the gammas and betas of a block (DP-GAN) or of a norm (OASIS) are one convolution here,
and `norm_s` normalises the same tensor as `norm_0`, so its statistics are not kept twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.models.discriminators import Discriminator, build_discriminator
from dpgan.models.generators import Generator, build_generator

NOISE_CHANNELS = 64  # of every official generator

# Our key -> theirs, by prefix; the first row that matches is taken.
_NAMES = [
    (r"^stem\.", "fc."),
    (r"^to_rgb\.", "conv_img."),
    (r"^pyramid\.(\d)\.conv\.", r"seg_pyrmid.\1.0."),
    (r"^pyramid\.(\d)\.norm\.", r"seg_pyrmid.\1.1."),
    (r"^blocks\.(\d)\.(norm_.)\.", r"body.\1.\2.first_norm."),
    (r"^blocks\.(\d)\.modulation\.2\.shared\.", r"body.\1.norm_s.mlp_shared.0."),
    (r"^blocks\.(\d)\.modulation\.(\d)\.shared\.", r"body.\1.norm_\2.mlp_shared.0."),
    (r"^blocks\.", "body."),
    (r"^down\.0\.conv_1\.", "body_down.0.conv1.0."),
    (r"^down\.(\d)\.conv_1\.", r"body_down.\1.conv1.1."),
    (r"^up\.(\d)\.conv_1\.", r"body_up.\1.conv1.2."),
    (r"^(down|up)\.(\d)\.conv_2\.", r"body_\1.\2.conv2.1."),
    (r"^(down|up)\.", r"body_\1."),
    (r"^heads\.", "dis."),
    (r"^to_logits\.", "layer_up_last."),
]


def generator_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `build_generator` for an official generator, read from its keys and shapes."""
    width, inputs = _conv(state, "conv_img.weight")[1], _conv(state, "fc.weight")[1]
    if inputs <= NOISE_CHANNELS:
        raise UserError(f"fc.weight has {inputs} input channels, of which {NOISE_CHANNELS} are noise: no class is left")
    shared = {"num_classes": inputs - NOISE_CHANNELS, "noise_channels": NOISE_CHANNELS, "width": width}
    if "body.0.norm_0.mlp_shared.0.weight" in state:
        hidden = _conv(state, "body.0.norm_0.mlp_shared.0.weight")[0]
        return {"kind": "oasis", **shared, "pyramid_width": hidden // 2}
    pyramid = _conv(state, "seg_pyrmid.1.0.weight")[0]
    concat = _conv(state, "body.0.norm_0.mlp_gamma.weight")[1] > pyramid
    return {"kind": "dp", **shared, "pyramid_width": pyramid, "concat_s0": concat}


def discriminator_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `build_discriminator` for an official discriminator; one without patch heads is OASIS's."""
    outputs, width = _conv(state, "layer_up_last.weight")[:2]
    heads = any(key.startswith("dis.") for key in state)
    kind, patch_at, feature_at = ("dp", "encoder", "decoder") if heads else ("oasis", "none", "none")
    at = {"patch_at": patch_at, "feature_at": feature_at}
    return {"kind": kind, "num_classes": outputs - 1, "width": width, "spectral_norm": True, **at}


def load_official_generator(state: Mapping[str, Tensor]) -> Generator:
    """The generator of an official state dict.

    Raises UserError with the keys that are missing, unexpected or of the wrong shape.
    """
    model = build_generator(**generator_arguments(state))
    remaining = dict(state)
    for key in state:
        if ".norm_s.first_norm." in key:
            duplicate, kept = remaining.pop(key), state.get(key.replace("norm_s", "norm_0"))
            if kept is None or duplicate.shape != kept.shape or not torch.allclose(duplicate, kept):
                raise UserError(f"{key!r} differs from norm_0's; both normalise one tensor")
    _fill(model, remaining)
    return model


def load_official_discriminator(state: Mapping[str, Tensor]) -> Discriminator:
    """The discriminator of an official state dict, as `load_official_generator`."""
    model = build_discriminator(**discriminator_arguments(state))
    _fill(model, state)
    return model


def official_views(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (a state dict, or gradients by parameter name) under their official names, as views."""
    views: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        whole = re.fullmatch(r"blocks\.(\d)\.modulation\.(weight|bias)", key)
        single = re.fullmatch(r"blocks\.(\d)\.modulation\.(\d)\.gamma_beta\.(weight|bias)", key)
        if whole:  # DP-GAN: the parts of every norm
            i, kind = whole.groups()
            inner = tensors[f"blocks.{i}.conv_1.bias"].shape[0]
            shortcut = f"blocks.{i}.conv_s.parametrizations.weight.original" in tensors
            outer = (tensor.shape[0] // 2 - inner) // (2 if shortcut else 1)
            sizes = {"0": outer, "1": inner} | ({"s": outer} if shortcut else {})
        elif single:  # OASIS: those of one norm
            i, number, kind = single.groups()
            sizes = {"01s"[int(number)]: tensor.shape[0] // 2}
        else:
            views[_official_name(key)] = tensor
            continue
        names = [f"body.{i}.norm_{n}.mlp_{part}.{kind}" for n in sizes for part in ("gamma", "beta")]
        views |= zip(names, tensor.split([c for c in sizes.values() for _ in "gb"]), strict=True)
    return views


def _official_name(key: str) -> str:
    key = key.replace(".parametrizations.weight.original", ".weight_orig")
    key = key.replace(".parametrizations.weight.0.", ".weight_")
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    raise KeyError(key)


def _conv(state: Mapping[str, Tensor], key: str) -> torch.Size:
    """The shape of a convolution's weight."""
    if key not in state:
        raise UserError(f"no key {key!r}: not the state dict of an official DP-GAN or OASIS network")
    if state[key].dim() != 4:
        raise UserError(f"{key!r} has shape {tuple(state[key].shape)}, and should be the weight of a convolution")
    return state[key].shape


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every tensor of an official state dict to its place; each key is used exactly once."""
    places = official_views(model.state_dict())
    # Counters that no forward pass reads; what was saved by old versions of torch lacks them.
    places = {key: place for key, place in places.items() if key in state or not key.endswith("num_batches_tracked")}
    faults = misfits(state, places)
    if faults:
        raise UserError("does not fit:\n" + "\n".join(faults))
    for key, place in places.items():
        place.copy_(state[key])


def misfits(state: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> list[str]:
    """A sentence for every key of a state dict that is missing, unexpected, or of another shape than its place."""
    faults = [f"missing key {key!r}" for key in places.keys() - state.keys()]
    faults += [f"unexpected key {key!r}" for key in state.keys() - places.keys()]
    faults += [
        f"{key!r} has shape {tuple(state[key].shape)}, expected {tuple(places[key].shape)}"
        for key in places.keys() & state.keys()
        if places[key].shape != state[key].shape
    ]
    return sorted(faults)

"""A network as one safetensors file that says how to build it, and the import of others' checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.models import official
from dpgan.models.discriminators import build_discriminator
from dpgan.models.generators import build_generator

METADATA = "dpgan"  # role and arguments, as JSON, in the header of our own files
BUILDERS: dict[str, Callable[..., nn.Module]] = {"generator": build_generator, "discriminator": build_discriminator}


@dataclass(frozen=True)
class Network:
    """A network, and what builds it again: `BUILDERS[role](**arguments)`."""

    role: str
    arguments: dict[str, Any]
    module: nn.Module


def import_network(path: Path) -> Network:
    """The network in a checkpoint file, every key and shape checked.

    Either a state dict of the official DP-GAN or OASIS code, as safetensors or as torch's .pth, recognised by its
    keys; or what `save_network` wrote. UserError for anything else: which keys do not fit, and how.
    """
    state, metadata = read_tensors(path)
    state = {key.removeprefix("module."): value for key, value in state.items()}  # nn.DataParallel's prefix
    try:
        if METADATA in metadata:
            return _own(json.loads(metadata[METADATA]), state)
        if "layer_up_last.weight" in state:
            module: nn.Module = official.load_official_discriminator(state)
            return Network("discriminator", official.discriminator_arguments(state), module)
        module = official.load_official_generator(state)
        return Network("generator", official.generator_arguments(state), module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def save_network(network: Network, path: Path) -> None:
    """The network as safetensors, with its role and arguments in the header; UserError where it cannot be written."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.module.state_dict().items()}
    header = json.dumps({"role": network.role, "arguments": network.arguments})
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(state, part, metadata={METADATA: header})
        part.rename(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def _own(header: dict[str, Any], state: dict[str, Tensor]) -> Network:
    module = BUILDERS[header["role"]](**header["arguments"])
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # torch names the keys
        raise UserError(str(error)) from None
    return Network(header["role"], header["arguments"], module)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. A pickle is only read as far as tensors go: no code of it runs."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser of foreign bytes raises
        raise UserError(
            f"{path}: refused, for it holds more than tensors, or is damaged ({str(error).splitlines()[0]}); save it "
            "anew as a state dict, best as safetensors"
        ) from None
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)] if isinstance(state, dict) else ["it"]
    if odd:
        raise UserError(f"{path}: not a state dict: {odd[0]!r} is no tensor; save `network.state_dict()`")
    return state, {}

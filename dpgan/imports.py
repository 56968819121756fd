"""`dpgan import-checkpoint`: networks of the official DP-GAN and OASIS codes become ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpgan.config import load_params
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.labels import card_path, load_card

if TYPE_CHECKING:
    from dpgan.models.files import Network


def import_checkpoint(file: Path, out: Path | None, register: bool) -> None:
    """Check a checkpoint of the official DP-GAN or OASIS code; save it as ours, register it, or both."""
    from dpgan.models.files import import_network, save_network

    network = import_network(file)
    arguments = ", ".join(f"{key} {value}" for key, value in network.arguments.items())
    print(f"import    {file} fits: a {network.role} ({arguments})")
    if out is not None:
        save_network(network, out)
        print(f"import    saved as {out}")
    if register:
        _register(file, network)


def _register(file: Path, network: Network) -> None:
    """As a version of the dataset of params.yaml, without an alias."""
    from dpgan.registry import packaging
    from dpgan.registry.imports import register_import
    from dpgan.registry.provenance import provenance, versions

    card = load_card(load_params().dataset)
    if network.role != "generator":
        raise UserError(f"{file} is a {network.role}; only generators are registered, and --out saves it")
    if network.arguments["num_classes"] != card.num_classes:
        raise UserError(
            f"{file} knows {network.arguments['num_classes']} classes, {card_path(card.name)} has {card.num_classes}; "
            "set `dataset` in params.yaml to the one that it was trained on, its classes in the same order"
        )
    digest = file_sha256(file)
    config = packaging.generator_config(card, network.arguments, data_hash=f"imported {digest}")
    facts = {"imported.file": file.name, "imported.sha256": digest, **provenance(Path.cwd())}
    content = packaging.Package(network.module.state_dict(), config, {**facts, "versions": versions()})
    version = register_import(Path.cwd(), card.name, f"import-{digest[:8]}", content, facts)
    print(f"import    dpgan-{card.name} version {version}, without an alias: the gate has not seen it")

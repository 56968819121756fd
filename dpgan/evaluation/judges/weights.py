"""Weights of published judges: files that the user brings, held against a checksum and a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from dpgan.config import JudgeSettings
from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.models.official import misfits

WHERE = "params.yaml: judge"


def published_files(settings: JudgeSettings, names: Sequence[str], source: str) -> list[Path]:
    """The files `names` that `judge.weights` stands for: itself, or what lies in it where it is a folder.

    UserError, with what to get and where from, where one is missing or its sha256 is not that of `judge.sha256`.
    """
    get = f"get {' and '.join(names)} from {source}"
    if settings.weights is None:
        raise UserError(f"{WHERE}.kind {settings.kind} needs judge.weights: {get}, and set judge.weights to the path")
    folder = settings.weights.is_dir() or len(names) > 1
    files = [settings.weights / name for name in names] if folder else [settings.weights]
    for path in files:
        if not path.is_file():
            raise UserError(f"{WHERE}.weights: {path}: no such file; {get}")
    check_sha256(files, settings.sha256)
    return files


def check_sha256(files: Sequence[Path], prefixes: Sequence[str]) -> None:
    """UserError where the files' sha256 do not begin with `prefixes`, one a file in their order.

    Their authors publish no checksum, so the settings must hold one: two scores of one name come from one network.
    """
    found = [file_sha256(path) for path in files]
    names = ", ".join(path.name for path in files)
    if len(prefixes) != len(files):
        raise UserError(
            f"{WHERE}.sha256 must hold {len(files)}, of {names}; none is published. Those of the files here begin with "
            f"{[digest[:8] for digest in found]}: if you trust where they are from, set judge.sha256 to that"
        )
    for path, digest, prefix in zip(files, found, prefixes, strict=True):
        if not digest.startswith(prefix):
            raise UserError(
                f"{WHERE}.weights: {path} is another file, or damaged: its sha256 begins with {digest[: len(prefix)]}, "
                f"judge.sha256 says {prefix}; get it again, or mend judge.sha256"
            )


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a published state dict into `network`; UserError with the keys and shapes that do not fit, however few."""
    # Counters that no forward pass reads; files saved by old versions of torch lack them.
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    places = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    faults = misfits(state, places)
    if faults:
        more = f"\nand {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(f"{path}: does not fit the network:\n" + "\n".join(faults[:10]) + more)
    network.load_state_dict(dict(state), strict=False)

"""Checkpoints: a directory of safetensors with a manifest of hashes, written aside and renamed.

The manifest is written last, and the directory gets its name last: what has its name and whose hashes agree is
complete. Nothing is pickled. There is no state of a random number generator to keep: every draw of training is a
function of the seed and the position (`dpgan.data.order`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.files import file_sha256, new_folder, write_json

MANIFEST = "manifest.json"

State = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the file that holds them."""


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file. OSError if it cannot be written: safetensors has an exception of its own for a full disk."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_state(module: nn.Module, path: Path) -> None:
    """A module's state dict as safetensors, whole or not there."""
    part = path.with_name(f".{path.name}.part")
    state = {key: value.detach().contiguous().cpu() for key, value in module.state_dict().items()}
    try:
        write_tensors(state, part)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def load_state(module: nn.Module, path: Path) -> None:
    """What `save_state` wrote, into a module of the same shape."""
    module.load_state_dict(load_file(path))


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and what its manifest says."""

    path: Path
    images: int  # real images seen
    trains: Mapping[str, Any]  # what is trained: settings, seed, data, card
    facts: Mapping[str, Any]
    digest: str  # sha256 of its manifest, which holds those of its files

    def file(self, name: str) -> Path:
        """The safetensors file of one entry of the saved state."""
        return self.path / f"{name}.safetensors"


class Checkpoints:
    """The checkpoints of one run, `images_000012000` each, below one folder, written by a thread during training.

    `to_keep` says which of them stay.
    """

    def __init__(self, folder: Path, trains: Mapping[str, Any], last: int = 2, every: int | None = None) -> None:
        self.folder, self.trains, self.last, self.every = folder, trains, last, every
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def save(self, images: int, state: State, best: int | None, facts: Mapping[str, Any]) -> None:
        """Copy `state` now and write it in the background; `best`: images seen at the best score so far.

        Waits for the write before, and raises what went wrong in it.
        """
        self.wait()
        # contiguous() after the copy: a tensor in channels_last is stored in the order of its dimensions.
        copied = {
            file: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
            for file, tensors in state.items()
        }
        self.writing = self.writer.submit(self._write, images, copied, best, dict(facts))

    def wait(self) -> None:
        """Until what was saved lies on disk. Raises UserError if it could not be written."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            try:
                writing.result()
            except OSError as error:
                raise UserError(
                    f"{self.folder}: the checkpoint could not be written ({error.strerror}); the ones before it are "
                    "whole: make room and run the same command again"
                ) from error

    def _write(self, images: int, state: State, best: int | None, facts: Mapping[str, Any]) -> None:
        with new_folder(self.folder / f"images_{images:09d}") as part:
            for file, tensors in state.items():
                write_tensors(tensors, part / f"{file}.safetensors")
            hashes = {file.name: file_sha256(file) for file in sorted(part.iterdir())}
            content = {"images": images, "trains": self.trains, "facts": facts, "sha256": hashes}
            write_json(part / MANIFEST, content)
        found = {int(path.name.removeprefix("images_")): path for path in self._named()}
        kept = to_keep(found, {images} if best is None else {images, best}, self.last, self.every)
        for number in found.keys() - kept:
            shutil.rmtree(found[number])
        for leftover in self.folder.glob(".images_*"):  # of a write that was cut off
            shutil.rmtree(leftover)

    def _named(self) -> list[Path]:
        return sorted(self.folder.glob("images_*"))

    def newest(self, verify: bool = True) -> Checkpoint | None:
        """The newest checkpoint whose hashes agree; what was cut off or altered is passed over, loudly.

        `verify=False` reads the manifest alone: enough to say what a checkpoint is of, not to load it.
        """
        for path in reversed(self._named()):
            try:
                return open_checkpoint(path, verify)
            except DamagedError as error:
                print(f"checkpoint {path} is damaged ({error}): going back to the one before it", flush=True)
        return None

    def best_ones(self) -> set[int]:
        """Images seen at the best score, as each of the checkpoints on disk names it."""
        found = [manifest["facts"].get("best") for path in self._named() if (manifest := _manifest(path)) is not None]
        return {int(best["images"]) for best in found if best}


def to_keep(images: Collection[int], named: Collection[int], last: int, every: int | None) -> set[int]:
    """Which checkpoints, at so many images each, stay: `named`, the newest `last`, and for each multiple of `every`
    the first one that has reached it."""
    numbers = sorted(images)
    kept = {*named, *numbers[-last:]}
    if every:
        kept |= {now for before, now in pairwise([0, *numbers]) if now // every > before // every}
    return kept & set(numbers)


class DamagedError(Exception):
    """A checkpoint that is cut off or altered: which of its files are."""


def open_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """A checkpoint, its files' hashes checked unless `verify` is False; DamagedError if it is not whole."""
    manifest = _manifest(path)
    if manifest is None:
        raise DamagedError(f"{MANIFEST} is missing or cut off")
    if verify and (altered := _altered(path, manifest["sha256"])):
        raise DamagedError(f"{', '.join(altered)}: missing or altered")
    digest = file_sha256(path / MANIFEST)
    return Checkpoint(path, manifest["images"], manifest["trains"], manifest["facts"], digest)


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, or None if it is missing or cut off."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if "sha256" in manifest else None


def _altered(path: Path, hashes: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing, or other ones than were written."""
    return [n for n, sha in hashes.items() if not (path / n).is_file() or file_sha256(path / n) != sha]


def starting_point(checkpoints: Checkpoints, fork: Path | None) -> Checkpoint | None:
    """Where a run starts: its own newest checkpoint, else that of the run to fork, else None: from nothing.

    Raises UserError if its own checkpoint trained something else, and if there is nothing to fork.
    """
    own = checkpoints.newest()
    if own is not None:
        changed = differences(own.trains, checkpoints.trains)
        if changed:
            raise UserError(
                f"{own.path} is of a training of something else ({'; '.join(changed)}): put that back, or, to start "
                f"from it all the same, set `train: {{fork: FOLDER OF THAT RUN}}` in params.yaml"
            )
        return own
    if fork is None:
        return None
    found = Checkpoints(fork / "checkpoints", {}).newest()
    if found is None:
        raise UserError(f"params.yaml: train.fork {fork}: no complete checkpoint below {fork / 'checkpoints'}")
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two descriptions of what is trained differ, a line each: `settings.ema: 0.999 -> 0.99`."""
    lines: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines

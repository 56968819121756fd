"""Checkpoints: a directory of safetensors with a manifest of hashes, written aside and renamed.

The manifest is written last, and the directory gets its name last: what has its name and whose hashes agree is
complete. Nothing is pickled. There is no state of a random number generator to keep: every draw of training is a
function of the seed and the position (`dpgan.data.order`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpgan.errors import UserError
from dpgan.files import file_sha256, new_folder, write_json

MANIFEST = "manifest.json"

State = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the file that holds them."""


def save_state(module: nn.Module, path: Path) -> None:
    """A module's state dict as safetensors."""
    save_file({key: value.detach().contiguous().cpu() for key, value in module.state_dict().items()}, path)


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

    def file(self, name: str) -> Path:
        """The safetensors file of one entry of the saved state."""
        return self.path / f"{name}.safetensors"


class Checkpoints:
    """The checkpoints of one run, `images_000012000` each, below one folder, written by a thread beside training.

    Kept are the newest `last`, the one at the best score, and every one at a multiple of `every` images.
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
        """Until what was saved lies on disk. Raises UserError where it could not be written."""
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
                save_file(dict(tensors), part / f"{file}.safetensors")
            hashes = {file.name: file_sha256(file) for file in sorted(part.iterdir())}
            content = {"images": images, "trains": self.trains, "facts": facts, "sha256": hashes}
            write_json(part / MANIFEST, content)
        seen = {path: int(path.name.removeprefix("images_")) for path in self._named()}
        kept = {images, best, *sorted(seen.values())[-self.last :]}
        for path, number in seen.items():
            if number not in kept and not (self.every and number % self.every == 0):
                shutil.rmtree(path)
        for leftover in self.folder.glob(".images_*"):  # of a write that was cut off
            shutil.rmtree(leftover)

    def _named(self) -> list[Path]:
        return sorted(self.folder.glob("images_*"))

    def newest(self, verify: bool = True) -> Checkpoint | None:
        """The newest checkpoint whose hashes agree; what was cut off or altered is passed over, loudly.

        `verify=False` reads the manifest alone: enough to tell what a checkpoint is of, not to load it.
        """
        for path in reversed(self._named()):
            manifest = _manifest(path)
            if manifest is None:
                broken = f"{MANIFEST} is missing or cut off"
            else:
                broken = ", ".join(_altered(path, manifest["sha256"])) if verify else ""
            if manifest is not None and not broken:
                return Checkpoint(path, manifest["images"], manifest["trains"], manifest["facts"])
            print(f"checkpoint {path} is damaged ({broken}): going back to the one before it", flush=True)
        return None


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, or None where it is missing or cut off."""
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

    Raises UserError where its own checkpoint trained something else, and where there is nothing to fork.
    """
    own = checkpoints.newest()
    if own is not None:
        changed = differences(own.trains, checkpoints.trains)
        if changed:
            raise UserError(
                f"{own.path} is of a training of something else ({'; '.join(changed)}): put that back, or, to go on "
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

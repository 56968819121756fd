"""Checkpoints: a directory of safetensors with a manifest of hashes, written aside and renamed.

The manifest is written last, and the directory gets its name last: what has its name and whose hashes agree is
complete. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpgan.files import file_sha256, new_folder, write_json

MANIFEST = "manifest.json"


def save_state(module: nn.Module, path: Path) -> None:
    """A module's state dict as safetensors."""
    save_file({key: value.detach().contiguous().cpu() for key, value in module.state_dict().items()}, path)


class Checkpoints:
    """The checkpoints of one run, `step_000123` each, below one folder; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        states: Mapping[str, Mapping[str, Tensor]],
        facts: Mapping[str, Any],
    ) -> Path:
        """Write one checkpoint completely, then drop the oldest beyond `keep`."""
        final = self.folder / f"step_{step:08d}"
        with new_folder(final) as part:
            for name, module in modules.items():
                save_state(module, part / f"{name}.safetensors")
            for name, state in states.items():  # of the optimizers, as their engines give them
                save_file(dict(state), part / f"{name}.safetensors")
            hashes = {file.name: file_sha256(file) for file in sorted(part.iterdir())}
            write_json(part / MANIFEST, {"step": step, "facts": dict(facts), "sha256": hashes})
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover)
        return final

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step_*") if (path / MANIFEST).is_file())

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose hashes agree, with its manifest; what was altered is passed over, loudly."""
        for path in reversed(self._complete()):
            manifest = json.loads((path / MANIFEST).read_text())
            broken = [n for n, sha in manifest["sha256"].items() if file_sha256(path / n) != sha]
            if not broken:
                return path, manifest
            print(
                f"checkpoint {path} is damaged ({', '.join(broken)}): going back to the one before it",
                flush=True,
            )
        return None


def load_state(module: nn.Module, path: Path) -> None:
    """What `save_state` wrote, into a module of the same shape."""
    module.load_state_dict(load_file(path))

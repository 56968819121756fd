"""The packaged generator: label maps in, photos out.

This file is copied into the model (MLflow's models-from-code) and must not import `dpgan`: the generator's
code travels beside it as the package `dpgan_generator`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from safetensors.torch import load_file

_MULTIPLE = 32  # the generator halves its input five times


class LabelsToPhoto(mlflow.pyfunc.PythonModel):
    """`predict(labels, params={"seed": int})`; see `predict`."""

    def load_context(self, context: Any) -> None:
        """Builds the generator of config.json with the weights of generator.safetensors."""
        from dpgan_generator.generators import build_generator  # type: ignore[import-not-found]

        self.config = json.loads(Path(context.artifacts["config"]).read_text())
        self.id_table = np.array(self.config["id_table"], dtype=np.int16)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = build_generator(**self.config["generator"])
        self.generator.load_state_dict(load_file(context.artifacts["generator"]))
        self.generator.to(self.device).eval()

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Raw label ids [H, W] or [B, H, W] of an integer type -> RGB uint8 [H, W, 3] or [B, H, W, 3].

        `params["seed"]` alone draws the noise: a map gives the same photo alone and in any batch.
        Raises ValueError for another type or rank, and for ids that the dataset does not have.
        """
        labels = self._class_indices(model_input)
        seed = int((params or {}).get("seed", 0))
        # Drawn on the CPU: the noise does not depend on the device.
        noise = torch.randn(1, self.generator.noise_channels, generator=torch.Generator().manual_seed(seed))
        if labels.ndim == 2:
            return self._paint(labels, noise)
        return np.stack([self._paint(one, noise) for one in labels])

    def _class_indices(self, model_input: np.ndarray) -> np.ndarray:
        ids = np.asarray(model_input)  # the scoring server passes lists
        if ids.dtype.kind not in "ui":
            raise ValueError(f"labels must be integers (uint8 raw ids), not {ids.dtype}")
        if ids.ndim not in (2, 3) or 0 in ids.shape:
            raise ValueError(f"labels must have the shape [H, W] or [B, H, W], not {list(ids.shape)}")
        known = np.flatnonzero(self.id_table >= 0)
        found, counts = np.unique(ids, return_counts=True)
        unknown = [f"{i} ({n} pixels)" for i, n in zip(found, counts, strict=True) if i not in known]
        if unknown:
            raise ValueError(
                f"unknown label ids: {', '.join(unknown)}; "
                f"{self.config['dataset']} knows: {', '.join(str(i) for i in known)}"
            )
        return self.id_table[ids]

    def _paint(self, labels: np.ndarray, noise: torch.Tensor) -> np.ndarray:
        """Class indices [H, W] -> RGB uint8 [H, W, 3]; borders are repeated to a multiple of 32 and cut."""
        height, width = labels.shape
        padded = np.pad(labels, ((0, -height % _MULTIPLE), (0, -width % _MULTIPLE)), mode="edge")
        batch = torch.from_numpy(padded.astype(np.int64))[None]
        with torch.inference_mode():
            photo = self.generator(batch.to(self.device), noise.to(self.device))[0, :, :height, :width]
        return ((photo + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


mlflow.models.set_model(LabelsToPhoto())

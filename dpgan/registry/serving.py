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
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

_MULTIPLE = 32  # the generator halves its input five times
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LabelsToPhoto(mlflow.pyfunc.PythonModel):
    """`predict(labels, params={"seed": 1, "noise": {"26": 7}})`; see `predict`."""

    def load_context(self, context: Any) -> None:
        """The generator of config.json with the weights of generator.safetensors, folded for inference.

        `load_model(uri, model_config={"precision": "bf16"})` computes in bf16. MlflowException for another precision.
        """
        from dpgan_generator.generators import build_generator  # type: ignore[import-not-found]
        from dpgan_generator.generators.export import for_inference  # type: ignore[import-not-found]

        precision = (context.model_config or {}).get("precision", "fp32")
        if precision not in _PRECISIONS:
            raise _refusal(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")

        self.config = json.loads(Path(context.artifacts["config"]).read_text())
        self.id_table = np.array(self.config["id_table"], dtype=np.int16)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = build_generator(**self.config["generator"])
        generator.load_state_dict(load_file(context.artifacts["generator"]))
        self.generator = for_inference(generator, _PRECISIONS[precision]).to(self.device)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Raw label ids [H, W] or [B, H, W] of an integer type -> RGB uint8 [H, W, 3] or [B, H, W, 3].

        `params["seed"]` draws the noise, and `params["noise"]`, label id -> seed, another one for the regions of
        those labels. Nothing else does: a map gives the same photo alone and in any batch.
        Raises MlflowException, which the scoring server answers as status 400, for another type or rank, and for ids
        and seeds that there are not; labels of `noise` that the dataset does not have are refused by the signature.
        """
        ids = self._checked(model_input)
        params = params or {}
        seed = _seed("seed", params.get("seed", 0))
        seeds = np.full(len(self.id_table), seed)  # by raw id
        for label, other in params.get("noise", {}).items():
            seeds[int(label)] = _seed(f"noise of label {label}", other)
        if ids.ndim == 2:
            return self._paint(ids, seeds)
        return np.stack([self._paint(one, seeds) for one in ids])

    def _checked(self, model_input: np.ndarray) -> np.ndarray:
        """The raw ids as an array, each known to the dataset."""
        ids = np.asarray(model_input)  # the scoring server passes lists
        if ids.dtype.kind not in "ui":
            raise _refusal(f"labels must be integers (uint8 raw ids), not {ids.dtype}")
        if ids.ndim not in (2, 3) or 0 in ids.shape:
            raise _refusal(f"labels must have the shape [H, W] or [B, H, W], not {list(ids.shape)}")
        known = np.flatnonzero(self.id_table >= 0)
        found, counts = np.unique(ids, return_counts=True)
        unknown = [f"{i} ({n} pixels)" for i, n in zip(found, counts, strict=True) if i not in known]
        if unknown:
            raise _refusal(
                f"unknown label ids: {', '.join(unknown)}; "
                f"{self.config['dataset']} knows: {', '.join(str(i) for i in known)}"
            )
        return ids

    def _paint(self, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Raw ids [H, W], seeds by raw id -> RGB uint8 [H, W, 3]; borders are repeated to a multiple of 32 and cut."""
        height, width = ids.shape
        padded = np.pad(ids, ((0, -height % _MULTIPLE), (0, -width % _MULTIPLE)), mode="edge")
        labels = torch.from_numpy(self.id_table[padded].astype(np.int64))[None]
        noise = self._noise(seeds[padded])
        with torch.inference_mode():
            photo = self.generator(labels.to(self.device), noise.to(self.device))[0, :, :height, :width]
        return ((photo + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    def _noise(self, seeds: np.ndarray) -> torch.Tensor:
        """Seeds [H, W] -> one vector [1, Z] where they are all the same, else a vector a pixel [1, Z, H, W]."""
        drawn, index = np.unique(seeds, return_inverse=True)
        # On the CPU: the noise does not depend on the device.
        generators = [torch.Generator().manual_seed(int(seed)) for seed in drawn]
        vectors = torch.stack([torch.randn(self.generator.noise_channels, generator=g) for g in generators])
        return vectors if len(drawn) == 1 else vectors.T[:, torch.from_numpy(index)].reshape(1, -1, *seeds.shape)


def _refusal(message: str) -> MlflowException:
    """MLflow's error for what the caller can mend."""
    return MlflowException.invalid_parameter_value(message)


def _seed(name: str, value: Any) -> int:
    """An integer of 64 bits, which is what torch and MLflow's `long` take; MLflow lets null and larger ones pass."""
    if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
        raise _refusal(f"{name} must be an integer of 64 bits, not {value!r}")
    return int(value)


mlflow.models.set_model(LabelsToPhoto())

"""The packaged generator: label maps in, photos out.

This file is copied into the model (MLflow's models-from-code) and must not import `dpgan`: the generator's
code travels with it as the package `dpgan_generator`.
"""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

MAX_PIXELS = 2**21  # of a request: one map of 1024x2048, which takes 7.8 GB at the paper's widths in fp32
_MULTIPLE = 32  # the generator halves its input five times
_SMALLEST = 8  # side of the maps of a batch; smaller ones are a mistake in the axes
_SHOWN, _LONGEST = 5, 1000  # unknown ids in a message; characters of a message
_PARAMS = {"seed", "noise"}
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

        _refuse_unknown_params()
        self.config = json.loads(Path(context.artifacts["config"]).read_text())
        self.id_table = np.array(self.config["id_table"], dtype=np.int16)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = build_generator(**self.config["generator"])
        generator.load_state_dict(load_file(context.artifacts["generator"]))
        self.generator = for_inference(generator, _PRECISIONS[precision]).to(self.device)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Raw label ids [H, W] or [B, H, W] of an integer type -> RGB uint8 [H, W, 3] or [B, H, W, 3].

        `params["seed"]` draws the noise, and `params["noise"]`, label id -> seed, another one for the regions of
        those labels. Nothing else does: a map gives the same photo alone and in any batch. The maps of a batch are
        painted one by one. Raises MlflowException, which the scoring server answers as status 400, for another type or
        rank, for more than MAX_PIXELS pixels, for unknown ids, labels and parameters, and for what is no seed.
        """
        ids = self._checked(model_input)
        params = params or {}
        seed = _seed("seed", params.get("seed", 0))
        seeds = np.full(len(self.id_table), seed)  # by raw id
        for label, other in params.get("noise", {}).items():
            seeds[int(label)] = _seed(f"noise of label {label}", other)
        if ids.ndim == 2:
            return self._paint(ids, seeds)
        photos = np.empty((*ids.shape, 3), np.uint8)
        for one, photo in zip(ids, photos, strict=True):
            photo[:] = self._paint(one, seeds)
        return photos

    def _checked(self, model_input: np.ndarray) -> np.ndarray:
        """The raw ids as an array, each known to the dataset."""
        ids = np.asarray(model_input)  # the scoring server passes lists
        if ids.size == 0:
            raise _refusal("there are no labels; give ids [H, W] or [B, H, W]")
        if ids.ndim in (3, 4) and ids.shape[-1] in (3, 4):
            raise _refusal(f"a label map in colours, {list(ids.shape)}; give ids [H, W] or [B, H, W]")
        if ids.dtype.kind not in "ui":
            raise _refusal(f"labels must be integers (uint8 raw ids), not {ids.dtype}")
        if ids.ndim not in (2, 3):
            raise _refusal(f"labels must have the shape [H, W] or [B, H, W], not {list(ids.shape)}")
        if ids.ndim == 3 and min(ids.shape[1:]) < _SMALLEST:
            raise _refusal(
                f"a batch [B, H, W] has maps of {_SMALLEST}x{_SMALLEST} pixels at least, not {list(ids.shape)}"
            )
        if ids.size > MAX_PIXELS:
            raise _refusal(f"{ids.size} pixels, and a request may have {MAX_PIXELS}; send fewer or smaller maps")
        known = np.flatnonzero(self.id_table >= 0)
        wrong = ids[~np.isin(ids, known)]
        if wrong.size:
            found, counts = np.unique(wrong, return_counts=True)
            named = [f"{i} ({n} pixels)" for i, n in zip(found[:_SHOWN], counts[:_SHOWN], strict=True)]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise _refusal(
                f"unknown label ids: {', '.join(named)}{more}; "
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
    """MLflow's error for what the caller can fix, of bounded length: it may quote the request."""
    short = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    return MlflowException.invalid_parameter_value(short)


def _refuse_unknown_params() -> None:
    """Makes MLflow refuse params of this model that it would ignore with a warning (`sead` would paint seed 0).

    It drops them before `predict` sees them, so its check is wrapped, for models with these params alone.
    """
    enforce = getattr(mlflow.pyfunc, "_enforce_params_schema", None)  # private: another MLflow may have none
    if enforce is None or hasattr(enforce, "refuses_unknown"):
        return

    @functools.wraps(enforce)
    def check(params: Any, schema: Any) -> Any:
        if schema is None or {spec.name for spec in schema.params} != _PARAMS or not isinstance(params, dict):
            return enforce(params, schema)
        for name in params:
            if name not in _PARAMS:
                near = difflib.get_close_matches(str(name)[:_LONGEST], _PARAMS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise _refusal(f"unknown parameter {str(name)[:50]!r}{hint}; known: {', '.join(sorted(_PARAMS))}")
        try:
            return enforce(params, schema)
        except MlflowException as error:
            raise _refusal(error.message) from None

    check.refuses_unknown = True  # type: ignore[attr-defined]
    mlflow.pyfunc._enforce_params_schema = check


def _seed(name: str, value: Any) -> int:
    """An integer of 64 bits, which is what torch and MLflow's `long` take; MLflow lets null and larger ones pass."""
    if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
        raise _refusal(f"{name} must be an integer of 64 bits, not {value!r}")
    return int(value)


mlflow.models.set_model(LabelsToPhoto())

"""SegFormer and Mask2Former checkpoints of transformers as judges, from a folder on this machine.

The folder is laid out as `save_pretrained` leaves it: config.json, preprocessor_config.json, *.safetensors. Nothing is
fetched, no code of the folder runs, and pickles are not read. **No published checkpoint was at hand when this was
written**: the tests run on tiny random ones.

Pictures are read at `judge.size`, or at their own size; what the processor of transformers would resize them to is the
checkpoint's training crop, not a protocol.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from dpgan.config import JudgeSettings
from dpgan.errors import UserError
from dpgan.evaluation.judges.base import Judge, eight_bits, match, normalise, resize
from dpgan.evaluation.judges.weights import WHERE, check_sha256
from dpgan.labels import Card

MODELS: dict[str, tuple[Any, Any]] = {
    "segformer": (SegformerConfig, SegformerForSemanticSegmentation),
    "mask2former": (Mask2FormerConfig, Mask2FormerForUniversalSegmentation),
}
LAYOUT = "the folder that `save_pretrained` wrote or that was downloaded from the model's page"


class Transformers(Judge):
    """A SegFormer (Xie et al., 2021) or Mask2Former (Cheng et al., 2022); reads the classes of its `id2label`."""

    kind = "transformers"

    def __init__(
        self,
        card: Card,
        model: dict[str, Any],
        mean: list[float],
        deviation: list[float],
        size: tuple[int, int] | None = None,
    ) -> None:
        """`model`: the configuration, as config.json has it; weights are random. mean, deviation: of values in 0..1."""
        configuration, network = MODELS[model["model_type"]]
        configuration = configuration.from_dict(model)
        classes = [configuration.id2label[i] for i in sorted(configuration.id2label)]
        name = model["model_type"] + (f"_{size[0]}" if size else "")
        super().__init__(name, classes, match(name, classes, card))
        self.model: PreTrainedModel = network(configuration)
        self.configuration, self.mean, self.deviation = model, mean, deviation
        self.size = size and (size[0], size[1])

    def config(self) -> dict[str, Any]:
        return {"model": self.configuration, "mean": self.mean, "deviation": self.deviation, "size": self.size}

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W], normalised -> logits or, of a Mask2Former, sums of probabilities [B, C, H, W]."""
        found = self.model(images)
        if "logits" in found:
            return _up(found.logits, images)
        # Cheng et al. (2021), section 3.4: every mask votes for its classes; the last class is "no object".
        classes = found.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, _up(found.masks_queries_logits, images).sigmoid())

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or (height, width)

    def scores(self, images: Tensor) -> Tensor:
        """As `Judge.scores`, at `size`, or at the pictures' own."""
        pixels = resize(eight_bits(images), self.working_size(*images.shape[-2:]))
        votes: Tensor = self(normalise(pixels, self.mean, self.deviation))
        return votes


def _up(x: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=False)


def load_published(settings: JudgeSettings, card: Card) -> Transformers:
    """The checkpoint in the folder `judge.weights`; UserError where it is none, not the one of `judge.sha256`, or
    made for another label set."""
    folder = settings.weights
    if folder is None or not folder.is_dir():
        what = "is not set" if folder is None else f"{folder}: no such folder"
        raise UserError(f"{WHERE}.weights {what}; it must be {LAYOUT}")
    model, processor = (_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    if model.get("model_type") not in MODELS:
        raise UserError(
            f"{folder / 'config.json'}: model_type {model.get('model_type')!r}; judges are {' and '.join(MODELS)}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{WHERE}.weights: {folder} holds no *.safetensors, and pickles are not read; get the safetensors, or save "
            "the model anew with transformers' `save_pretrained`"
        )
    check_sha256(files, settings.sha256)
    _, network = MODELS[model["model_type"]]
    try:
        loaded, found = network.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever a parser of foreign files raises
        raise UserError(f"{folder}: cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    lost = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lost:
        raise UserError(f"{folder}: without weights for {len(lost)} of its tensors, {lost[0]} the first; get it again")
    try:
        mean, deviation = processor["image_mean"], processor["image_std"]
    except KeyError as error:
        raise UserError(f"{folder / 'preprocessor_config.json'}: lacks {error}; get it again") from None
    judge = Transformers(card, json.loads(loaded.config.to_json_string(use_diff=False)), mean, deviation, settings.size)
    judge.model.load_state_dict(loaded.state_dict())
    return judge


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{WHERE}.weights: {path}: no such file; it must be {LAYOUT}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); get it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping; get it again")
    return content

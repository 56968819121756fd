"""Judges: segmentation networks that read pictures, for mIoU. Each is a protocol, and the metrics bear its name.

| protocol | for | weights |
|---|---|---|
| `trained` | any dataset | trained here, on its real training photos |
| `drn105_256`, `drn105_1024` | Cityscapes' 19 classes | published, brought by the user |
| `upernet101` | ADE20K's 150 classes | published, brought by the user |
| `segformer`, `mask2former` | what the checkpoint was trained for | a folder of transformers' |

`make_judge` makes the one that the settings ask for; from then on it is one safetensors file, whatever it came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dpgan.checks import of_judge, refuse
from dpgan.config import JudgeSettings
from dpgan.errors import UserError
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.judges.base import Judge
from dpgan.labels import Card

if TYPE_CHECKING:
    import numpy as np

__all__ = ["KINDS", "Judge", "load_judge", "make_judge", "save_judge"]

# Module and class of each kind; imported when asked for. The module of a published one has `load_published`.
KINDS = {
    "trained": ("trained", "Trained"),
    "drn105": ("drn", "DRN105"),
    "upernet101": ("upernet", "UPerNet101"),
    "transformers": ("transformers", "Transformers"),
}
METADATA = "judge"  # kind, name, classes and configuration, as JSON, in the header of the file
REMEDY = "`dvc repro judge` makes a new one"


def make_judge(
    settings: JudgeSettings,
    card: Card,
    photos: tuple[np.ndarray, np.ndarray],
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    engine: Engine | None = None,
) -> Judge:
    """The judge of the settings, in eval mode on the CPU: trained on `photos` by `engine`, or a published one, checked.

    photos: uint8 [N, H, W, 3] and their label maps, class indices uint8 [N, H, W]; `trained` alone looks at them.
    UserError where weights are missing, others than the settings say, or were made for another label set.
    """
    refuse(of_judge(settings))
    if settings.kind == "trained":
        from dpgan.evaluation.judges.trained import train_judge

        return train_judge(*photos, card, settings, seed, progress, engine)
    module, _ = KINDS[settings.kind]
    judge: Judge = import_module(f"{__name__}.{module}").load_published(settings, card)
    return judge.eval().requires_grad_(False)


def save_judge(judge: Judge, path: Path) -> None:
    """The judge as one safetensors file, whole or not at all; what it was built with stands in the header."""
    header = {"kind": judge.kind, "name": judge.name, "classes": judge.classes, "config": judge.config()}
    part = path.with_name(f".{path.name}.part")
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in judge.state_dict().items()},
        part,
        {METADATA: json.dumps(header)},
    )
    part.rename(path)


def load_judge(path: Path, card: Card) -> Judge:
    """The judge that `save_judge` wrote, in eval mode; UserError where it is not one for the classes of the card."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if header.get("kind") not in KINDS:
                raise UserError(f"{path}: not a judge; {REMEDY}")
            module, name = KINDS[header["kind"]]
            kind: type[Judge] = getattr(import_module(f"{__name__}.{module}"), name)
            judge = kind.restored(header, card)
            judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} is not there; {REMEDY}") from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not a judge's weights ({str(error).splitlines()[0]}); {REMEDY}") from None
    return judge.eval().requires_grad_(False)

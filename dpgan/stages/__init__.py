"""The stages of dvc.yaml: each reads what the stages before it left in build/, and leaves its own.

They compose the floors below and hold no logic of their own. Heavy imports stand inside, so that `dpgan index`
does not wait for torch.
"""

from dpgan.stages.build import EVALUATION, PROMOTION, SCORES, TRAINED, VALIDATION, need_raw, raw_pointer
from dpgan.stages.data import index, judge, prepare, render, validate
from dpgan.stages.evaluate import evaluate
from dpgan.stages.promote import promote
from dpgan.stages.summary import summary
from dpgan.stages.train import train

__all__ = [
    "EVALUATION", "PROMOTION", "SCORES", "TRAINED", "VALIDATION",
    "evaluate", "index", "judge", "need_raw", "prepare", "promote", "raw_pointer", "render", "summary", "train",
    "validate",
]  # fmt: skip

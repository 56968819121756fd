"""`dpgan tables`: the paper's tables, and the experiments that would fill them."""

from __future__ import annotations

import os
from pathlib import Path

from dpgan.config import load_params
from dpgan.labels import load_card


def tables(preset: str | None, commands: bool) -> None:
    """Print the paper's tables beside our runs of the dataset of params.yaml, in Markdown."""
    from dpgan.evaluation.tables import missing, render
    from dpgan.registry.runs import scored_runs
    from dpgan.registry.store import tracking_uri

    dataset = load_card(load_params().dataset).name
    runs = scored_runs(Path.cwd(), dataset, preset)
    if not commands:
        print(render(runs, dataset), end="")
        return
    # Experiments run in folders of their own: the store must be the project's.
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        print(f"export MLFLOW_TRACKING_URI={tracking_uri(Path.cwd())}")
    for one in missing(runs):
        chosen = {"preset": preset, **one.train} if preset else one.train
        words = [_override(*s) for s in chosen.items()]
        words += [f"-S '++evaluate.{key}={_text(value)}'" for key, value in one.evaluate.items()]
        print(" ".join(["dvc exp run --temp -n", f"{dataset}-{one.name}", *words, "evaluate"]))


def _override(key: str, value: object) -> str:
    """As `dvc exp run -S` wants it; `preset` stands in params.yaml already, the rest is added."""
    if key == "preset":
        return f"-S train.preset={value}"
    if key == "labelmix":
        return "-S ++train.losses.labelmix=0"
    return f"-S ++train.{key}={_text(value)}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

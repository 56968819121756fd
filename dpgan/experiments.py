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
    from dpgan.registry.tracking import tracking_uri

    dataset = load_card(load_params().dataset).name
    runs = scored_runs(Path.cwd(), dataset, preset)
    if not commands:
        print(render(runs, dataset), end="")
        return
    # Experiments run in folders of their own: the store must be the project's.
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        print(f"export MLFLOW_TRACKING_URI={tracking_uri(Path.cwd())}")
    for name, settings in missing(runs).items():
        chosen = {"preset": preset, **settings} if preset else settings
        print(f"dvc exp run --temp -n {dataset}-{name} {''.join(f'{_override(*s)} ' for s in chosen.items())}evaluate")


def _override(key: str, value: object) -> str:
    """As `dvc exp run -S` wants it; `preset` stands in params.yaml already, the rest is added."""
    if key == "preset":
        return f"-S train.preset={value}"
    if key == "labelmix":
        return "-S ++train.losses.labelmix=0"
    return f"-S ++train.{key}={str(value).lower() if isinstance(value, bool) else value}"

"""What the user is told in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpgan.stages.build import EVALUATION, PROMOTION, SCORES, VALIDATION, read_json, setup


def summary() -> None:
    """Say where to look: the champion, the scores with floor and ceiling, the pictures, the UI."""
    from dpgan.registry.promote import champion_version

    promotion = read_json(PROMOTION, "promote")
    model, version = promotion["model"], promotion["version"]
    champion = champion_version(Path.cwd(), setup()[1].name)
    print()
    print_scores(read_json(SCORES, "evaluate"))
    print()
    print(f"  candidate       {model} version {version}: {promotion['verdict']}; {'; '.join(promotion['reasons'])}")
    named = f"{model} version {champion}  (models:/{model}@champion)" if champion else "none"
    print(f"  champion        {named}")
    print(f"  evaluation      {EVALUATION / 'report.html'}")
    print(f"  data report     {VALIDATION / 'report.html'}")
    print("  MLflow UI       make ui")


def print_scores(sets: Mapping[str, Any]) -> None:
    rows = {
        "floor": "floor (class colours)",
        "last": "last",
        "best": "best on hold-out",
        "ceiling": "ceiling (real photos)",
    }
    keys = [key for key in sets["best"] if not key.endswith("_of_real")]
    width = max(14, 2 + max(map(len, keys)))
    print(f"  {'':<23}" + "".join(f"{key:>{width}}" for key in keys))
    for name, title in rows.items():
        cells = (f"{sets[name][key]:.1f}" if key in sets[name] else "" for key in keys)
        print(f"  {title:<23}" + "".join(f"{cell:>{width}}" for cell in cells))


def markdown(sets: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a table, for the run's description in the UI."""
    keys = list(sets["best"])
    cells = {name: [f"{scores[key]:.1f}" if key in scores else "" for key in keys] for name, scores in sets.items()}
    rows = [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|", *rows])

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
    """A line a score. Floor: each class in its mean colour; best: by the hold-out; ceiling: real photos."""
    names = ["floor", "last", "best", "ceiling"]
    print(f"  {'':<28}" + "".join(f"{name:>9}" for name in names))
    for key in (key for key in sets["best"] if not key.endswith("_of_real")):
        cells = (f"{sets[name][key]:.1f}" if key in sets[name] else "" for name in names)
        print(f"  {key:<28}" + "".join(f"{cell:>9}" for cell in cells))


def markdown(sets: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a table, for the run's description in the UI."""
    keys = list(sets["best"])
    cells = {name: [f"{scores[key]:.1f}" if key in scores else "" for key in keys] for name, scores in sets.items()}
    rows = [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|", *rows])

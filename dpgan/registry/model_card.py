"""The description of a model version: what a model card says, in Markdown, which MLflow's UI renders."""

from __future__ import annotations

from collections.abc import Mapping

from dpgan.evaluation.intervals import Estimate
from dpgan.labels import Card
from dpgan.page import render
from dpgan.registry.gate import Evaluation, Verdict

LONGEST = 5000  # characters that MLflow's database keeps of a description
_WEAKEST = 3


def model_card(
    model: str,
    number: int,
    card: Card,
    scores: Evaluation,
    floor: Evaluation,
    ceiling: Mapping[str, float],
    facts: Mapping[str, str],
    verdict: Verdict,
) -> str:
    """What it is, its data, scores between floor and ceiling, what it is for and not for, how to load it.

    ceiling: scores of the real photos by full name. facts: commit and hashes of the data, as on its run.
    """
    names = [name for name in (*scores.main, f"accuracy_{scores.protocol['judge']}") if name in scores.scores]
    prefix = f"iou_{scores.protocol['judge']}/"
    real = {name.removeprefix(prefix): value for name, value in ceiling.items() if name.startswith(prefix)}
    # What the judge does not read in real photos either says nothing of the model.
    shares = {name: score.value / real[name] for name, score in scores.classes.items() if real.get(name, 0) > 0}
    weakest = [(name, scores.classes[name].value, real[name]) for name in sorted(shares, key=lambda n: shares[n])]
    text = render(
        "model_card.md.jinja",
        model=model, number=number, card=card, facts=facts, verdict=verdict, names=names, weakest=weakest[:_WEAKEST],
        protocol=scores.protocol, key=scores.key, n=next(iter(scores.scores.values())).n, ceiling=ceiling,
        ours={name: _with_interval(scores.scores[name]) for name in names},
        floor={name: f"{floor.scores[name].value:.1f}" if name in floor.scores else "" for name in names},
    )  # fmt: skip
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _with_interval(score: Estimate) -> str:
    low, high = score.interval
    return f"{score.value:.1f} ({low:.1f} to {high:.1f})"

"""A proposal as files: a card that is read and corrected by hand, and a README."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from dpgan.labels import Card

if TYPE_CHECKING:
    from dpgan.data.propose import Proposal


def _quoted(text: str) -> str:
    """Text as YAML, between other text of a line: quoted if it needs it, as `no`, `null` and `#5` do."""
    flow = yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**9)
    return flow.strip()[1:-1]


def card_yaml(card: Card) -> str:
    """A proposed card as a file to be read and corrected: one class a line."""
    layout = card.layout.model_dump(exclude_none=True)
    rows = []
    for info in card.classes:
        use = ", evaluate: true" if info.evaluate else ", void: true" if info.void else ""
        rows.append(f"  - {{id: {info.id}, name: {_quoted(info.name)}, color: {list(info.color)}{use}}}")
    return "\n".join(
        [
            "# Proposed by `dpgan data add`; correct what it got wrong. dpgan/labels.py says what each field means.",
            f"name: {card.name}",
            f"title: {_quoted(card.title)}",
            f"licence: {_quoted(card.licence)}",
            "layout:",
            *(f"  {key}: {_quoted(pattern)}" for key, pattern in layout.items()),
            f"splits: {{train: {_quoted(card.splits['train'])}, val: {_quoted(card.splits['val'])}}}",
            f"size: {list(card.size)} # height, width",
            f"preset: {card.preset} # the small network; on a GPU take a paper-* row of dpgan/presets.py",
            f"encoding: {card.encoding}",
            "classes: # evaluate: counts in mIoU; void: don't care, no loss and no score",
            *rows,
            "",
        ]
    )


def readme(proposal: Proposal) -> str:
    """The README of a proposed dataset: what its user must fill in, and what was seen."""

    def listed(sentences: list[str]) -> list[str]:
        return [f"- {sentence}" for sentence in sentences] or ["Nothing."]

    return "\n".join(
        [
            f"# {proposal.card.title}",
            "Say here where the photos come from, how to obtain them, and what they may be used for.",
            "",
            "## What `dpgan data add` found",
            *listed(proposal.found),
            "",
            "## What looked suspicious",
            *listed(proposal.suspicious),
            "",
        ]
    )

"""Counts and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def some(items: Iterable[object], count: int = 3) -> str:
    """The first few of many, and how many more there are."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:count]) + (f" and {len(texts) - count} more" if len(texts) > count else "")


def number(count: int, what: str) -> str:
    """`1 photo`, `2 photos`."""
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('ss') else 's'}"

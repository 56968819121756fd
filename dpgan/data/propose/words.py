"""Lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def some(items: Iterable[object], count: int = 3) -> str:
    """The first few of many, and how many more there are."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:count]) + (f" and {len(texts) - count} more" if len(texts) > count else "")

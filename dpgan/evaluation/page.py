"""The report of an evaluation: one page that needs no network.

`templates/evaluation_report.html.jinja` is the page; this module turns scores, curves and images into what stands on
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dpgan.evaluation.intervals import LOWER_IS_BETTER
from dpgan.page import Picture, data_url, hex_color, render

PICTURE = (256, 256)  # pixels that a picture fits into
PLOT = (300, 130)  # of a training curve, without its labels


@dataclass(frozen=True)
class Score:
    """A value with its 95% interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClassScore:
    """IoU of a class, in percent, by set ("floor", ours, "ceiling"); None where the class does not occur."""

    name: str
    color: tuple[int, int, int]
    iou: Mapping[str, float | None]


@dataclass(frozen=True)
class Curve:
    """A metric over the training: (images seen, value)."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: float | None = None  # images at which the kept checkpoint was taken


@dataclass(frozen=True)
class Painted:
    """Images of one label map, uint8 [H, W, 3], by what they are ("label map", "real photo", "generated", ...)."""

    caption: str
    images: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Table:
    """Further numbers: a title, what the columns are, a row of texts each, and how they were taken."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Content:
    """All that stands on the page."""

    title: str
    summary: str  # a sentence under the title
    identity: Mapping[str, str]  # commit, data, settings, hardware, time, ...
    scores: Mapping[str, Mapping[str, Score]]  # set -> metric -> score
    ours: str  # the set that the page is about
    classes: Sequence[ClassScore] = ()
    curves: Sequence[Curve] = ()
    samples: Sequence[Painted] = ()
    extremes: Mapping[str, Sequence[Painted]] = field(default_factory=dict)  # "best by the judge" -> images
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class _Line:
    """A curve as SVG sees it."""

    name: str
    path: str
    low: str
    high: str
    last: str
    images: str
    mark: tuple[float, float] | None


def write_page(content: Content, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(
        "evaluation_report.html.jinja",
        content=content,
        metrics=list(next(iter(content.scores.values()))),
        number=number,
        lower=lambda metric: metric.startswith(LOWER_IS_BETTER),
        lines=[line for curve in content.curves if (line := _line(curve))],
        plot=PLOT,
        hex_color=hex_color,
        classes=sorted(content.classes, key=lambda c: -(c.iou[content.ours] or 0)),
        samples=[(painted.caption, _pictures(painted)) for painted in content.samples],
        extremes={
            title: [(painted.caption, _pictures(painted)) for painted in chosen]
            for title, chosen in content.extremes.items()
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page)
    part.rename(path)


def number(value: float) -> str:
    """A score with as many digits as it deserves: 0.0123, 1.23, 12.3, 123.4, 12345."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def _line(curve: Curve) -> _Line | None:
    points = [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return None
    xs, ys = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    width, height = PLOT
    low, high = float(ys.min()), float(ys.max())

    def at(x: float, y: float) -> tuple[float, float]:
        span = (high - low) or 1.0
        return round(width * x / float(xs.max()), 1), round(height * (1 - (y - low) / span), 1)

    path = " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(at(*point) for point in points))
    mark = None
    if curve.marked is not None:
        mark = at(curve.marked, float(np.interp(curve.marked, xs, ys)))
    return _Line(curve.name, path, number(low), number(high), number(float(ys[-1])), f"{xs.max():.0f}", mark)


def _pictures(painted: Painted) -> list[tuple[str, Picture]]:
    """Label maps keep their colours (PNG); everything else is a photo (JPEG)."""
    shown = []
    for name, pixels in painted.images.items():
        image = Image.fromarray(pixels)
        if "label" in name:
            url = data_url(image, "png", PICTURE, Image.Resampling.NEAREST)
        else:
            url = data_url(image, "jpeg", PICTURE, Image.Resampling.BOX)
        shown.append((name, Picture(f"{painted.caption}: {name}", url)))
    return shown

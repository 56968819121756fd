"""Pictures: sheets of label map | real | generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_CAPTION = 22


def grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of uint8 [N, H, W, 3] side by side, a row a sample: uint8 [H', W', 3], white gaps between."""
    n, height, width = columns[0].shape[:3]
    sheet = np.full((n * (height + _GAP) - _GAP, len(columns) * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            top, left = row * (height + _GAP), column * (width + _GAP)
            sheet[top : top + height, left : left + width] = image
    return sheet


def contact_sheet(columns: dict[str, np.ndarray], path: Path, min_width: int = 256) -> None:
    """A captioned PNG of `grid`: title -> uint8 [N, H, W, 3]; small images are enlarged, pixels kept square."""
    width = next(iter(columns.values())).shape[2]
    factor = max(1, min_width // width)
    enlarged = [images.repeat(factor, axis=1).repeat(factor, axis=2) for images in columns.values()]
    pixels = grid(enlarged)
    sheet = Image.new("RGB", (pixels.shape[1] + 2 * _GAP, pixels.shape[0] + _CAPTION + _GAP), "white")
    sheet.paste(Image.fromarray(pixels), (_GAP, _CAPTION))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for column, title in enumerate(columns):
        draw.text((_GAP + column * (width * factor + _GAP), 2), title, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

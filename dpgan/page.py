"""Pages that need no network: templates/ holds them, and what they share; pictures are inline."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """An image as a data URL, or the words that stand in its place."""

    alt: str
    url: str = ""


def render(template: str, **content: Any) -> str:
    """The page of a template; in HTML everything in `content` is escaped. What the template lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is None or name.endswith(".html.jinja"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(**content)


def data_url(image: Image.Image, kind: Literal["jpeg", "png"], box: tuple[int, int], how: Image.Resampling) -> str:
    """A data URL of an image made to fit `box` (width, height); as `png` in 256 colours at most."""
    scale = min(1.0, box[0] / image.width, box[1] / image.height)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
    buffer = io.BytesIO()
    if kind == "jpeg":
        small.save(buffer, "JPEG", quality=80)
    else:
        small.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def hex_color(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)

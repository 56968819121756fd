"""Images that somebody else made, one for every label map of a split, as files in a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpgan.data.decode import decode
from dpgan.errors import UserError, some

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SHOWN = 3  # names in an error


def read_images(
    folder: Path, ids: Sequence[str], size: tuple[int, int], report: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """The images of label maps `ids` ("val/frankfurt/frankfurt_000000_000294"), uint8 [N, H, W, 3], in their order.

    A file belongs to the label map whose name (the last part of its id) its own name is, or begins with, up to a `_`,
    `-` or `.`: "frankfurt_000000_000294_fake.png". UserError where a label map has no image, or several; where a file
    cannot be read, or has another size (height, width) than the prepared label maps.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = _matched(files, ids)
    missing = [one for one in ids if one not in found]
    if missing:
        raise UserError(
            f"{folder}: {len(files)} images, and none for {len(missing)} of the {len(ids)} validation label maps: "
            f"{some(missing, SHOWN)}; the image of {ids[0]} must be called {Path(ids[0]).name}.png, or "
            f"{Path(ids[0]).name}_ANYTHING.png"
        )
    twice = [one for one in ids if len(found[one]) > 1]
    if twice:
        names = ", ".join(str(path.relative_to(folder)) for path in found[twice[0]][:SHOWN])
        raise UserError(f"{folder}: {len(twice)} label maps have several images; {twice[0]} has {names}: leave one")
    extra = len(files) - len(ids)
    if extra:
        print(f"evaluate  {folder}: {extra} images belong to no validation label map and are left out", flush=True)
    images = np.empty((len(ids), *size, 3), np.uint8)
    for position, one in enumerate(ids):
        (path,) = found[one]
        image, fault, _ = decode(path)
        if image is None:
            raise UserError(f"{path}: {fault}; make it again")
        if (image.height, image.width) != size:
            raise UserError(
                f"{path}: {image.height}x{image.width}, and the prepared label maps are {size[0]}x{size[1]} (`size` of "
                "the dataset's card): paint at that size, or resize all images alike; how is part of what is scored"
            )
        images[position] = np.asarray(image.convert("RGB"))
        if report:
            report(position + 1, len(ids))
    return images


def _matched(files: Sequence[Path], ids: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each id; the longest name that fits counts, so that `a_1` does not take the images of `a_1_2`."""
    by_name = {Path(one).name: one for one in ids}
    if len(by_name) < len(ids):
        twice = next(one for one in ids if by_name[Path(one).name] != one)
        raise UserError(
            f"label maps {twice} and {by_name[Path(twice).name]} have one name, so that an image's name does not tell "
            "which it belongs to; evaluate a model instead"
        )
    found = defaultdict(list)
    for path in files:
        name = path.stem
        ends = [len(name), *(i for i in range(len(name) - 1, 0, -1) if name[i] in "_-.")]
        one = next((by_name[name[:end]] for end in ends if name[:end] in by_name), None)
        if one is not None:
            found[one].append(path)
    return found

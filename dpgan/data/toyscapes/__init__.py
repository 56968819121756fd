"""Toyscapes: procedural street scenes with exact Cityscapes labels, a data set that needs no download.

A scene is a pure function of (seed, index, size): a street is laid out in metres, then painted from far to near by
`canvas`. Size only decides how finely; what stands where does not depend on it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from dpgan.cluster import each
from dpgan.data.toyscapes import figures, street, vehicles
from dpgan.data.toyscapes.canvas import (
    BICYCLE,
    BUS,
    CAR,
    LIGHTS,
    MOTORCYCLE,
    PERSON,
    RIDER,
    TRAIN,
    TRUCK,
    Camera,
    Canvas,
)
from dpgan.errors import UserError
from dpgan.labels import Card, Layout

# Painted in this order, whatever the distance: a row of houses is behind everything between it and the road.
HOUSES, GARDENS, BOUNDARIES, STREET = range(4)


class Scene(NamedTuple):
    """One street scene."""

    image: np.ndarray  # uint8 [H, W, 3]
    label: np.ndarray  # uint8 [H, W]: Cityscapes raw ids, as in data/toyscapes/dataset.yaml
    instance: np.ndarray  # uint16 [H, W]: id * 1000 + k for things, the raw id elsewhere


class _Plan:
    """What is to be painted, gathered in any order."""

    def __init__(self, canvas: Canvas, rng: Random) -> None:
        self.canvas, self.rng = canvas, rng
        self._items: list[tuple[int, float, Callable[[], None]]] = []
        self._count: dict[int, int] = {}

    def add(self, layer: int, z: float, paint: Callable[..., None], *args: object) -> None:
        """`paint(canvas, *args)` in its turn; z is the distance of the near end."""
        self._items.append((layer, -z, partial(paint, self.canvas, *args)))

    def thing(self, class_id: int) -> int:
        """The code of a new instance."""
        k = self._count.get(class_id, 0)
        self._count[class_id] = k + 1
        return class_id * 1000 + k

    def paint(self) -> None:
        """Everything, far before near."""
        for _, _, paint in sorted(self._items, key=lambda item: item[:2]):
            paint()


def _lots(plan: _Plan, lay: street.Layout, side: int, autumn: float) -> None:
    """What lines the street on one side: closed rows of houses, houses in gardens, or a park."""
    rng, style, front = plan.rng, lay.style[side], lay.front[side]
    z = 2.0 + rng.uniform(0, 3)
    kinds = rng.choice([["fence", "wall", "hedge"], ["fence", "fence", "hedge"], ["wall", "wall", "hedge"]])
    while z < 105:
        length = rng.uniform(8, 16)
        if style == "town" and rng.random() < 0.86:
            height = rng.uniform(8, 19)
            plan.add(HOUSES, z, street.house, rng, side, front, z, z + length, height, True)
        else:
            if style == "houses":
                back, height = front + side * rng.uniform(3.5, 6), rng.uniform(4.2, 7.2)
                plan.add(HOUSES, z + 1.5, street.house, rng, side, back, z + 1.5, z + length - 1.5, height, False)
            trees = rng.randint(2, 4) if style == "park" else rng.randint(0, 2)
            for _ in range(trees):
                x = front + side * (rng.uniform(2, 16) if style == "park" else rng.uniform(1.6, 3.2))
                zt, height = z + rng.uniform(0, length), rng.uniform(4.5, 9) * (1 if style == "park" else 0.7)
                if zt > 7:
                    plan.add(GARDENS, zt, figures.tree, rng, x, zt, height, autumn)
            kind = rng.choice(kinds)
            if rng.random() < 0.8:
                plan.add(BOUNDARIES, z, street.boundary, rng, kind, side, front, z, z + length)
        z += length + (0 if rng.random() < 0.8 else rng.uniform(1, 4))


def _furniture(plan: _Plan, lay: street.Layout, crossing: float | None, autumn: float) -> None:
    """Lamps, lights, signs and trees beside the kerbs."""
    rng = plan.rng
    for side in (-1, 1):
        x = lay.kerb[side] + side * 0.6
        start, lamps = rng.uniform(9, 22), rng.random() < 0.75
        for k in range(4):
            if lamps:
                plan.add(STREET, start + 24 * k, figures.street_lamp, x, start + 24 * k)
        if crossing is not None and rng.random() < 0.85:
            plan.add(STREET, crossing - 0.4, figures.traffic_light, rng, x - side * 0.1, crossing - 0.4)
        for _ in range(rng.choice([0, 1, 1, 2])):
            z = rng.uniform(6, 22)
            plan.add(STREET, z, figures.traffic_sign, rng, x + side * rng.uniform(-0.1, 0.5), z)
        if rng.random() < 0.5:
            start, step, height = rng.uniform(9, 16), rng.uniform(8, 12), rng.uniform(4.5, 7.5)
            xt = (lay.kerb[side] + lay.path[side]) / 2 if lay.path[side] != lay.kerb[side] else x + side * 0.5
            for k in range(7):
                z = start + step * k
                plan.add(STREET, z, figures.tree, rng, xt, z, height * rng.uniform(0.85, 1.1), autumn)


def _traffic(plan: _Plan, lay: street.Layout) -> None:
    """Vehicles in the lanes: the large ones first, then cars where there is room."""
    rng = plan.rng
    taken: dict[float, list[tuple[float, float]]] = {0.0: [], lay.oncoming: []}

    def put(paint: Callable[..., None], class_id: int, x: float, z: float, length: float) -> None:
        if all(z > b + 2 or z + length < a - 2 for a, b in taken[x]):
            taken[x].append((z, z + length))
            plan.add(STREET, z, paint, rng, x, z, x == 0.0, plan.thing(class_id))

    large = [(vehicles.bus, BUS, 11.0), (vehicles.truck, TRUCK, 9.0)]
    lanes = [0.0, lay.oncoming]
    rng.shuffle(lanes)
    for (paint, class_id, length), x in zip(large, lanes, strict=True):
        near, wanted = rng.uniform(9, 19) if x == 0 else rng.uniform(7, 18), rng.random() < 0.25
        if wanted:
            put(paint, class_id, x if lay.tram_lane is None else 0.0, near, length)
    if lay.tram_lane is not None:
        z, away = rng.uniform(7, 20), rng.random() < 0.4
        plan.add(STREET, z, vehicles.tram, rng, lay.tram_lane, z, away, plan.thing(TRAIN))
    for x in (0.0, lay.oncoming):
        z = rng.uniform(8, 20)
        while z < 80:
            put(vehicles.car, CAR, x, z, 4.5)
            z += 4.5 + rng.uniform(3, 26)
    for side in (-1, 1):
        z, x = rng.uniform(4, 9), lay.kerb[side] - side * 1.15
        while lay.parking[side] and z < 70:
            if rng.random() < 0.62:
                plan.add(STREET, z, vehicles.car, rng, x, z, side > 0, plan.thing(CAR))
            z += 5.4


def _people(plan: _Plan, lay: street.Layout, crossing: float | None) -> None:
    """Persons on the pavements and the crossing, riders, and two-wheelers that are parked."""
    rng = plan.rng

    def heading() -> float:
        """Mostly across our view, so that the wheels are seen."""
        return rng.uniform(-0.7, 0.7) + (math.pi if rng.random() < 0.5 else 0)

    def ride(machine: Callable[..., None], class_id: int, x: float, z: float) -> None:
        angle = heading()
        plan.add(STREET, z, machine, rng, x, z, plan.thing(class_id), angle)
        # An eyelash nearer: painted right after the machine.
        plan.add(STREET, z - 0.01, figures.rider, rng, x, z, plan.thing(RIDER), angle, class_id == MOTORCYCLE)

    for side in (-1, 1):
        for _ in range(rng.choice([0, 1, 2, 3, 4, 5])):
            x = rng.uniform(lay.path[side] + side * 0.7, lay.front[side] - side * 0.5)
            z = 5.5 * (34 / 5.5) ** rng.random()
            for k in range(rng.choice([1, 1, 2])):
                plan.add(STREET, z + 0.1 * k, figures.person, rng, x + 0.6 * k, z + 0.1 * k, plan.thing(PERSON))
        parked = rng.random()
        x, z = lay.path[side] + side * 1.0, rng.uniform(6, 13)
        for k in range(rng.randint(1, 3)):
            zk, turn = z + 1.1 * k, rng.uniform(-0.35, 0.35)
            if parked < 0.2:
                plan.add(STREET, zk, figures.bicycle, rng, x, zk, plan.thing(BICYCLE), turn)
            elif parked < 0.36:
                plan.add(STREET, zk, figures.motorcycle, rng, x, zk, plan.thing(MOTORCYCLE), turn)
    if crossing is not None:
        for _ in range(rng.randint(1, 4)):
            z = crossing + rng.uniform(0.3, 2.3)
            plan.add(STREET, z, figures.person, rng, rng.uniform(lay.kerb[-1], lay.kerb[1]), z, plan.thing(PERSON))
    for machine, class_id, share in (
        (figures.bicycle, BICYCLE, 0.45),
        (figures.motorcycle, MOTORCYCLE, 0.35),
    ):
        if rng.random() < share:
            x = rng.choice([rng.uniform(0.2, 1.0), rng.uniform(-3.0, -1.2), lay.oncoming + rng.uniform(-1, 1)])
            ride(machine, class_id, x, rng.uniform(5.5, 11))


def render_scene(seed: int, index: int, size: tuple[int, int]) -> Scene:
    """The scene number `index` of a seed at (height, width) pixels: the same bytes wherever it is rendered."""
    rng = Random(f"toyscapes/{seed}/{index}")
    camera = Camera(
        focal=rng.uniform(1.0, 1.25),
        horizon=rng.uniform(0.42, 0.50),
        pan=rng.uniform(-0.1, 0.1),
        height=rng.uniform(1.45, 1.9),
        curve=rng.choice([0.0, 0.0, 1.0, -1.0]) * rng.uniform(0.0008, 0.003),
    )
    name = rng.choices(list(LIGHTS), [6, 4, 4, 3, 3])[0]
    wet = rng.uniform(0.35, 0.6) if name in ("overcast", "dusk") and rng.random() < 0.5 else 0.0
    light = LIGHTS[name]._replace(side=rng.choice([-1, 1]), cover=LIGHTS[name].cover * rng.uniform(0.6, 1.2), wet=wet)
    canvas = Canvas(size, camera, light)
    sky, grain = [(rng.randrange(256), rng.randrange(256)) for _ in range(2)]
    canvas.sky(sky, (light.side * rng.uniform(0.3, 1.1), rng.uniform(0.02, 0.34)))
    lay = street.Layout(rng, tram=rng.random() < 0.24)
    crossing = rng.uniform(8.5, 17) if rng.random() < 0.42 else None
    autumn = rng.choice([0.0, 0.0, 0.1, rng.uniform(0.3, 0.9)])
    street.skyline(canvas, rng)
    street.paint_ground(canvas, rng, lay, crossing)
    plan = _Plan(canvas, rng)
    for side in (-1, 1):
        _lots(plan, lay, side, autumn)
    _furniture(plan, lay, crossing, autumn)
    _traffic(plan, lay)
    _people(plan, lay, crossing)
    plan.paint()
    image, code = canvas.finish(grain)
    return Scene(image, np.where(code >= 1000, code // 1000, code).astype(np.uint8), code)


def _save(layout: Layout, size: tuple[int, int], seed: int, folder: Path, job: tuple[int, str, str]) -> None:
    index, split, name = job
    scene = render_scene(seed, index, size)
    for pattern, pixels in zip((layout.image, layout.label, layout.instance), scene, strict=True):
        if pattern is not None:
            path = folder / pattern.format(split=split, id=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)


def write_dataset(
    card: Card, folder: Path, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Renders the card's recipe into `folder`, which is there afterwards either whole or not at all.

    Training scenes have the indices 0..train-1, validation scenes those that follow. `progress(done, total)` is
    called after every scene. Raises UserError where the card has no recipe or the folder is already there.
    """
    recipe = card.toyscapes
    if recipe is None:
        raise UserError(
            f"data/{card.name}/dataset.yaml: `toyscapes` is missing, so there is nothing to render; "
            "put the raw files of this dataset in place yourself, see its README.md"
        )
    if folder.exists():
        raise UserError(f"{folder} is already there; remove it to render it anew")
    total = recipe.train + recipe.val
    jobs = chain(
        ((i, card.splits["train"], f"{i:06d}") for i in range(recipe.train)),
        ((i, card.splits["val"], f"{i:06d}") for i in range(recipe.train, total)),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        save = partial(_save, card.layout, recipe.size, recipe.seed, aside.absolute())
        with closing(each(save, list(jobs), workers)) as saved:
            for done, _ in enumerate(saved, start=1):
                if progress is not None:
                    progress(done, total)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

"""Persons, bicycles, motorcycles, trees and street furniture for toyscapes."""

from __future__ import annotations

import math
from random import Random

from dpgan.data.toyscapes.canvas import LIGHT, POLE, SIGN, VEGETATION, Canvas, Color, Point, mix, scaled

SKIN: list[Color] = [(240, 200, 170), (224, 172, 136), (176, 122, 86), (112, 74, 52)]
HAIR: list[Color] = [(40, 30, 26), (92, 60, 34), (196, 156, 84), (150, 150, 150)]
CLOTHES: list[Color] = [
    (204, 52, 50), (48, 92, 170), (236, 196, 64), (60, 132, 92), (232, 228, 218), (110, 66, 130), (232, 122, 60),
    (60, 150, 170), (70, 70, 80),
]  # fmt: skip
TROUSERS: list[Color] = [(44, 54, 84), (58, 56, 60), (112, 96, 76), (84, 100, 124)]
STEEL: Color = (112, 116, 122)
UNIT = [(math.cos(a * math.pi / 6), math.sin(a * math.pi / 6)) for a in range(12)]

Place = tuple[float, float]  # metres along a figure's heading, metres up


class Figure:
    """Drawing in an upright plane through (x, z) that is turned by `heading` (0: across our view)."""

    def __init__(self, canvas: Canvas, x: float, z: float, code: int, heading: float = 0.0, size: float = 1.0) -> None:
        self.canvas, self.code = canvas, code
        self._x, self._z = x, z
        self._dx, self._dz = math.cos(heading) * size, math.sin(heading) * size
        self._size = size

    def _at(self, s: float, y: float) -> Point:
        return (self._x + s * self._dx, y * self._size, self._z + s * self._dz)

    def shape(self, places: list[Place], color: Color, face: str = "front") -> None:
        """A polygon."""
        self.canvas.fill([self._at(s, y) for s, y in places], color, self.code, face)

    def disc(self, s: float, y: float, r: float, color: Color, rise: float = 1.0) -> None:
        """A round thing; `rise` stretches it upwards."""
        self.shape([(s + r * a, y + r * rise * b) for a, b in UNIT], color)

    def limb(self, a: Place, b: Place, width: float, color: Color, face: str = "front") -> None:
        """A bar with blunt ends from a to b."""
        s, y = b[0] - a[0], b[1] - a[1]
        length = math.hypot(s, y)
        ts, ty = s / length * width / 2, y / length * width / 2
        self.shape(
            [
                (a[0] - ty - ts * 0.3, a[1] + ts - ty * 0.3), (a[0] - ts * 0.8, a[1] - ty * 0.8),
                (a[0] + ty - ts * 0.3, a[1] - ts - ty * 0.3), (b[0] + ty + ts * 0.3, b[1] - ts + ty * 0.3),
                (b[0] + ts * 0.8, b[1] + ty * 0.8), (b[0] - ty + ts * 0.3, b[1] + ts + ty * 0.3),
            ],
            color, face,
        )  # fmt: skip

    def head(self, s: float, y: float, skin: Color, top: Color) -> None:
        """A head with hair, cap or helmet."""
        self.disc(s, y, 0.115, skin, 1.2)
        cap = [(s + 0.125 * a, y + 0.02 + 0.15 * b) for a, b in UNIT[:7]]
        self.shape(cap, top)


def person(c: Canvas, rng: Random, x: float, z: float, code: int) -> None:
    """Someone who stands or walks."""
    size, stride = rng.uniform(0.9, 1.06) * rng.choice([1, 1, 1, 1, 0.72]), rng.uniform(-0.28, 0.28)
    shirt, trousers, skin, hair = (
        rng.choice(CLOTHES),
        rng.choice(TROUSERS),
        rng.choice(SKIN),
        rng.choice(HAIR),
    )
    dress, bag, swing = rng.random() < 0.25, rng.random() < 0.3, rng.uniform(0.5, 1)
    c.cast(x - 0.25, x + 0.25, z - 0.15, z + 0.2, 1.5)
    f = Figure(c, x, z, code, size=size)
    dark = scaled(shirt, 0.78)
    f.limb((0.16, 1.38), (0.2 - stride * swing, 0.9), 0.12, dark)
    f.limb((0.07, 0.85), (0.08 + stride, 0.05), 0.17, scaled(trousers, 0.8))
    f.limb((-0.07, 0.85), (-0.08 - stride, 0.05), 0.17, trousers)
    for s in (0.1 + stride, -0.06 - stride):
        f.limb((s - 0.05, 0.04), (s + 0.08, 0.04), 0.09, (34, 30, 30))
    f.shape([(-0.2, 1.45), (-0.23, 1.2), (-0.18, 0.8), (0.18, 0.8), (0.23, 1.2), (0.2, 1.45), (0, 1.5)], shirt)
    if dress:
        f.shape([(-0.17, 0.95), (0.17, 0.95), (0.27, 0.5), (-0.27, 0.5)], shirt)
    f.limb((-0.2, 1.38), (-0.24 + stride * swing, 0.9), 0.12, dark)
    if bag:
        f.limb((-0.3, 0.82), (-0.3, 0.55), 0.24, rng.choice(CLOTHES))
    f.head(0, 1.62, skin, hair)


def bicycle(c: Canvas, rng: Random, x: float, z: float, code: int, heading: float) -> None:
    """Two wheels with grey spokes, a diamond frame, saddle and handlebar; 1.7 m long."""
    frame = rng.choice(CLOTHES)
    c.shadow(
        [(x - 0.85, 0, z - 0.12), (x + 0.85, 0, z - 0.12), (x + 0.85, 0, z + 0.2), (x - 0.85, 0, z + 0.2)],
        0.6,
    )
    f = Figure(c, x, z, code, heading)
    for s in (-0.54, 0.54):
        f.disc(s, 0.35, 0.36, (30, 30, 34))
        f.disc(s, 0.35, 0.27, (142, 146, 152))
        f.disc(s, 0.35, 0.06, (40, 40, 44))
    for a, b in (
        ((-0.54, 0.35), (-0.18, 0.85)), ((-0.54, 0.35), (0.0, 0.33)), ((0.0, 0.33), (-0.2, 0.9)),
        ((0.0, 0.33), (0.42, 0.82)), ((-0.18, 0.82), (0.42, 0.86)), ((0.54, 0.35), (0.4, 0.98)),
    ):  # fmt: skip
        f.limb(a, b, 0.085, frame)
    f.limb((-0.34, 0.95), (-0.08, 0.95), 0.1, (30, 28, 28))
    f.limb((0.3, 1.02), (0.5, 1.04), 0.07, (40, 40, 44))


def motorcycle(c: Canvas, rng: Random, x: float, z: float, code: int, heading: float) -> None:
    """Fat tyres, a tank, a dark seat, an engine and a headlamp; 2.1 m long."""
    paint = rng.choice([(196, 30, 34), (30, 60, 150), (34, 34, 40), (236, 120, 20), (40, 120, 60)])
    c.shadow([(x - 1, 0, z - 0.25), (x + 1, 0, z - 0.25), (x + 1, 0, z + 0.3), (x - 1, 0, z + 0.3)], 0.8)
    f = Figure(c, x, z, code, heading)
    for s in (-0.7, 0.7):
        f.disc(s, 0.33, 0.35, (24, 24, 27))
        f.disc(s, 0.33, 0.17, (160, 162, 166))
    f.limb((0.7, 0.33), (0.42, 0.98), 0.12, (150, 152, 158))
    f.shape([(-0.4, 0.25), (0.36, 0.25), (0.42, 0.7), (-0.5, 0.7)], (66, 66, 72))
    f.limb((-0.9, 0.3), (0.1, 0.28), 0.14, (186, 188, 192))
    f.shape(
        [(-1.0, 0.78), (-0.95, 0.92), (-0.2, 0.8), (0.05, 1.02), (0.42, 0.98), (0.5, 0.66), (-0.3, 0.58)],
        paint,
    )
    f.shape([(-0.95, 0.9), (-0.1, 0.86), (-0.2, 0.76), (-0.9, 0.8)], (30, 28, 30))
    f.limb((0.32, 1.1), (0.5, 1.12), 0.08, (40, 40, 44))
    f.disc(0.56, 0.92, 0.12, (255, 240, 196))


def rider(c: Canvas, rng: Random, x: float, z: float, code: int, heading: float, motor: bool) -> None:
    """Who sits on a bicycle (leaning to the bar) or a motorcycle (with a full helmet)."""
    shirt, trousers, skin = rng.choice(CLOTHES), rng.choice(TROUSERS), rng.choice(SKIN)
    helmet, down = rng.choice([*CLOTHES, *HAIR]), rng.random() < 0.5
    f = Figure(c, x, z, code, heading)
    if motor:
        hip, shoulder, hand, knee, foot = (
            (-0.35, 0.95),
            (-0.1, 1.45),
            (0.36, 1.14),
            (0.1, 0.85),
            (-0.12, 0.35),
        )
    else:
        hip, shoulder, hand = (-0.2, 1.02), (0.08, 1.5), (0.38, 1.06)
        knee, foot = ((0.12, 0.72), (0.0, 0.2)) if down else ((0.22, 0.92), (0.06, 0.5))
    f.limb(hip, knee, 0.19, trousers)
    f.limb(knee, foot, 0.15, trousers)
    f.limb(foot, (foot[0] + 0.14, foot[1] - 0.02), 0.1, (36, 32, 32))
    f.limb(hip, shoulder, 0.36, shirt)
    f.limb((shoulder[0] + 0.02, shoulder[1] - 0.06), hand, 0.13, scaled(shirt, 0.78))
    f.head(shoulder[0] + 0.1, shoulder[1] + 0.27, helmet if motor else skin, helmet)


def tree(c: Canvas, rng: Random, x: float, z: float, height: float, autumn: float) -> None:
    """A trunk and a crown of clumps: dark ones behind, lighter ones where the sun is; `autumn` 0..1 turns it gold."""
    leaf = mix(rng.choice([(70, 118, 46), (84, 130, 50), (58, 106, 54)]), (206, 132, 40), autumn)
    crown, radius = height * 0.64, height * rng.uniform(0.24, 0.3)
    clumps = [(rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.36, 0.52)) for _ in range(13)]
    side = c.light.side
    c.cast(x - 0.2, x + 0.2, z - 0.2, z + 0.2, 1.0)
    if c.light.sun[0] > 0.3:
        sx = x - side * height * 0.5
        c.shadow([(sx + 1.3 * radius * a, 0, z + 1 + radius * b) for a, b in UNIT], 0.5)
    w = 0.03 * height
    c.fill(
        [(x - w, 0, z), (x + w, 0, z), (x + w * 0.7, crown, z), (x - w * 0.7, crown, z)],
        (92, 70, 54),
        VEGETATION,
    )
    c.fill(
        [(x + side * w, 0, z), (x + side * w * 0.3, 0, z), (x, crown, z), (x + side * w * 0.7, crown, z)],
        (128, 100, 76),
    )
    places = [(x + a * radius * 0.62, crown + b * radius * 0.75 * (1 - 0.3 * abs(a)), r * radius) for a, b, r in clumps]
    c.disc(x, crown, z, radius * 0.8, scaled(leaf, 0.62), VEGETATION)
    for px, py, r in places:
        c.disc(px, py, z, r, scaled(leaf, 0.62), VEGETATION)
    for px, py, r in places:
        c.disc(px + side * 0.12 * r, py + 0.16 * r, z, 0.78 * r, scaled(leaf, 0.9))
    for px, py, r in places[::2] if c.pixels(radius, z) > 4 else []:
        c.disc(px + side * 0.3 * r, py + 0.34 * r, z, 0.46 * r, mix(scaled(leaf, 1.2), (250, 226, 120), 0.12))


def _post(c: Canvas, x: float, z: float, height: float, width: float, color: Color = STEEL) -> None:
    w = width / 2
    c.fill([(x - w, 0, z), (x + w, 0, z), (x + w * 0.8, height, z), (x - w * 0.8, height, z)], color, POLE)
    lit = x + c.light.side * w * 0.4
    c.fill([(lit - w * 0.3, 0, z), (lit + w * 0.3, 0, z), (lit, height, z)], scaled(color, 1.35))
    c.cast(x - w, x + w, z - w, z + w, height)


def street_lamp(c: Canvas, x: float, z: float) -> None:
    """A tall post with an arm over the road."""
    to = 1.0 if x < 0 else -1.0
    arm = 1.7 * to
    _post(c, x, z, 6.8, 0.24, (84, 92, 96))
    c.fill([(x - 0.08, 6.6, z), (x + arm, 6.95, z), (x + arm, 7.1, z), (x - 0.08, 6.85, z)], (84, 92, 96), POLE)
    c.fill(
        [
            (x + arm * 0.6, 6.8, z),
            (x + arm * 1.3, 6.9, z),
            (x + arm * 1.3, 7.15, z),
            (x + arm * 0.6, 7.12, z),
        ],
        (70, 78, 82),
        POLE,
    )
    head = [
        (x + arm * 0.68, 6.84, z),
        (x + arm * 1.24, 6.9, z),
        (x + arm * 1.24, 6.98, z),
        (x + arm * 0.68, 6.93, z),
    ]
    c.lamp(head, (255, 222, 150), 1.0, 0.9)


def traffic_light(c: Canvas, rng: Random, x: float, z: float) -> None:
    """A post with three lamps in a dark case."""
    state = rng.choice([0, 2, 2, 1])
    _post(c, x, z, 3.0, 0.2)
    w, y0, y1 = 0.27, 2.5, 4.1
    c.fill([(x - w, y0, z), (x + w, y0, z), (x + w, y1, z), (x - w, y1, z)], (34, 38, 36), LIGHT)
    for k, color in enumerate([(255, 56, 40), (255, 190, 40), (60, 240, 120)]):
        y = y1 - 0.3 - 0.5 * k
        ring = [(x + 0.19 * a, y + 0.19 * b, z) for a, b in UNIT]
        if k == state:
            c.lamp(ring, color, 1.0, 0.5)
        else:
            c.fill(ring, scaled(color, 0.28))


def traffic_sign(c: Canvas, rng: Random, x: float, z: float) -> None:
    """A post with a round, triangular, square or diamond plate in the colours of its kind."""
    kind, y = rng.randrange(5), rng.uniform(2.4, 2.9)
    _post(c, x, z, y, 0.13)
    r, red, white, blue = 0.48, (206, 34, 40), (244, 244, 240), (34, 84, 176)

    def plate(outline: list[tuple[float, float]], size: float, color: Color, code: int | None = None) -> None:
        c.fill([(x + r * size * a, y + r * size * b, z) for a, b in outline], color, code)

    triangle, diamond = (
        [(-1.0, -0.8), (1.0, -0.8), (0.0, 1.0)],
        [(0.0, 1.05), (1.05, 0.0), (0.0, -1.05), (-1.05, 0.0)],
    )
    square, bar = (
        [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        [(-0.6, -0.17), (0.6, -0.17), (0.6, 0.17), (-0.6, 0.17)],
    )
    outline, rim, face, mark = [
        (UNIT, red, white, [(a * 0.3, b * 0.45) for a, b in UNIT]),
        (UNIT, red, red, bar),
        (triangle, red, white, [(a * 0.35, b * 0.35 - 0.15) for a, b in triangle]),
        (square, blue, blue, [(-0.35, -0.6), (-0.1, -0.6), (0.0, 0.1), (0.4, 0.3), (0.1, 0.6), (-0.35, 0.6)]),
        (diamond, white, (244, 196, 40), []),
    ][kind]
    plate(outline, 1.0, rim, SIGN)
    plate(outline, 0.76, face)
    if mark:
        plate(mark, 0.9, white if face == rim else (40, 40, 44))

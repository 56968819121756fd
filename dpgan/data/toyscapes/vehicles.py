"""Cars, trucks, buses and trams for toyscapes: side profiles drawn out to their width."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from dpgan.data.toyscapes.canvas import Canvas, Color, Point, mix, scaled

GLASS: Color = (44, 58, 74)
TYRE: Color = (26, 26, 30)
RED: Color = (255, 48, 36)
WHITE: Color = (255, 246, 214)

CAR_PAINTS: list[Color] = [
    (196, 38, 40), (38, 84, 168), (222, 224, 228), (152, 158, 166), (44, 46, 54), (234, 174, 40), (46, 122, 104),
    (118, 26, 44), (88, 148, 196), (228, 102, 36),
]  # fmt: skip

# Side profiles from the rear bumper over the roof to the front bumper: metres along the car, metres up. The
# edges from corner 2 to 3 and from 4 to 5 are the rear window and the windscreen.
CAR_PROFILES: list[list[tuple[float, float]]] = [
    [
        (0, 0.24),
        (0, 0.86),
        (0.55, 0.96),
        (1.3, 1.42),
        (2.5, 1.44),
        (3.3, 0.98),
        (4.3, 0.80),
        (4.4, 0.24),
    ],  # saloon
    [
        (0, 0.24),
        (0, 0.80),
        (0.06, 0.98),
        (0.4, 1.46),
        (2.2, 1.50),
        (2.95, 1.0),
        (3.7, 0.82),
        (3.8, 0.24),
    ],  # hatchback
    [
        (0, 0.24),
        (0, 0.90),
        (0.08, 1.10),
        (0.45, 1.66),
        (2.9, 1.70),
        (3.5, 1.14),
        (4.4, 0.98),
        (4.5, 0.24),
    ],  # estate
]


def _between(corner: Point, side: Point, up: Point, t: float) -> Point:
    """A corner of a quad moved inwards along its two edges."""
    x, y, z = (c + (s - c) * t + (u - c) * t for c, s, u in zip(corner, side, up, strict=True))
    return x, y, z


class Body:
    """A vehicle between x0 and x1 whose near end stands at z; `away`: it drives as we do, we see its rear."""

    def __init__(self, canvas: Canvas, x0: float, x1: float, z: float, length: float, away: bool, code: int) -> None:
        self.canvas, self.x0, self.x1, self.z, self.length = canvas, x0, x1, z, length
        self.away, self.code = away, code
        self.side_x: float | None
        bend = canvas.camera.curve * z * z
        if x0 + bend > 0.05:
            self.side_x, self.side_face = x0, "left"
        elif x1 + bend < -0.05:
            self.side_x, self.side_face = x1, "right"
        else:
            self.side_x, self.side_face = None, "dark"

    def _z(self, s: float) -> float:
        """Depth of a place s metres from the rear bumper."""
        return self.z + (s if self.away else self.length - s)

    def prism(
        self, profile: list[tuple[float, float]], paint: Color, glass: tuple[int, ...] = (), inset: float = 0
    ) -> None:
        """The profile drawn out across the width; the edges in `glass` are windows; inset: narrower above 1 m."""
        waist = profile[2][1] + 0.02 if inset else 99

        def across(s: float, y: float) -> tuple[Point, Point]:
            d = inset if y > waist else 0.0
            return (self.x0 + d, y, self._z(s)), (self.x1 - d, y, self._z(s))

        edges = list(enumerate(pairwise(profile)))
        edges.sort(key=lambda e: -max(self._z(e[1][0][0]), self._z(e[1][1][0])))
        for index, ((s0, y0), (s1, y1)) in edges:
            (a, b), (d, c) = across(s0, y0), across(s1, y1)
            steep = abs(y1 - y0) > 0.6 * abs(s1 - s0)
            self.canvas.fill([a, b, c, d], paint, self.code, "front" if steep else "top")
            if index in glass:
                self.canvas.fill(
                    [_between(p, q, r, 0.08) for p, q, r in ((a, b, d), (b, a, c), (c, d, b), (d, c, a))],
                    GLASS,
                )
                if self.canvas.pixels(1, self.z) > 7:  # the sky in the upper half of the pane
                    sky = mix(GLASS, self.canvas.light.horizon, 0.3)
                    high, low = ((a, b), (d, c)) if a[1] > d[1] else ((d, c), (a, b))
                    pane = [
                        _between(high[0], high[1], low[0], 0.08),
                        _between(high[1], high[0], low[1], 0.08),
                    ]
                    pane += [
                        _between(pane[1], pane[0], low[1], 0.35),
                        _between(pane[0], pane[1], low[0], 0.2),
                    ]
                    self.canvas.fill(pane, sky)
        if self.side_x is not None:
            sign = 1 if self.side_x == self.x0 else -1
            outline = [(self.side_x + sign * (inset if y > waist else 0), y, self._z(s)) for s, y in profile]
            self.canvas.fill(outline, paint, self.code, self.side_face)

    def on_side(self, points: list[tuple[float, float]], color: Color, d: float = 0, code: int | None = None) -> None:
        """A polygon (metres from the rear, metres up) on the flank that we see; d: how far it lies inwards."""
        if self.side_x is not None:
            x = self.side_x + (d if self.side_x == self.x0 else -d)
            self.canvas.fill([(x, y, self._z(s)) for s, y in points], color, code, self.side_face)

    def panel(self, s0: float, s1: float, y0: float, y1: float, color: Color) -> None:
        """A rectangle on the flank."""
        self.on_side([(s0, y0), (s1, y0), (s1, y1), (s0, y1)], color)

    def end(self, u0: float, u1: float, y0: float, y1: float) -> list[Point]:
        """A rectangle on the end that we see; u runs from 0 to 1 across the width."""
        a, b = self.x0 + (self.x1 - self.x0) * u0, self.x0 + (self.x1 - self.x0) * u1
        z = self.z - 0.01
        return [(a, y0, z), (b, y0, z), (b, y1, z), (a, y1, z)]

    def wheels(self, places: list[float], r: float) -> None:
        """Wheels on the flank, and the two under the end that we see."""
        ring = [(0.0, 1.0), (0.5, 0.87), (0.87, 0.5), (1.0, 0.0), (0.87, -0.5), (0.5, -0.87)]
        ring += [(-a, -b) for a, b in ring]
        for u in (0.04, 0.80):
            self.canvas.fill(self.end(u, u + 0.16, 0, r), TYRE, self.code)
        for s in places:
            self.on_side([(s + r * a, r + r * b) for a, b in ring], TYRE, code=self.code)
            if self.canvas.pixels(r, self._z(s)) > 1.5:
                self.on_side([(s + 0.55 * r * a, r + 0.55 * r * b) for a, b in ring], (150, 152, 158))

    def lamps(self, y: float, h: float, wide: float = 0.16) -> None:
        """Two red tail lights or two white headlights."""
        color = RED if self.away else WHITE
        for u in (0.05, 0.95 - wide):
            self.canvas.lamp(
                self.end(u, u + wide, y, y + h), color, 0.5 if self.away else 1.0, 0.2 if self.away else 0.35
            )


def car(c: Canvas, rng: Random, x: float, z: float, away: bool, code: int) -> None:
    """A car in the middle of a lane at x, its near end at z."""
    profile, paint, taxi = rng.choice(CAR_PROFILES), rng.choice(CAR_PAINTS), rng.random() < 0.08
    if taxi:
        paint = (240, 190, 30)
    width, length = 1.8, profile[-1][0]
    c.cast(x - width / 2, x + width / 2, z, z + length, 1.2)
    b = Body(c, x - width / 2, x + width / 2, z, length, away, code)
    b.prism(profile, paint, glass=(2, 4), inset=0.14)
    (s2, y2), (s3, y3), (s4, _), (s5, y5) = profile[2:6]
    window = [(s2 + 0.22, y2 + 0.05), (s3 + 0.08, y3 - 0.09), (s4 - 0.05, y3 - 0.08), (s5 - 0.2, y5 + 0.05)]
    b.on_side(window, GLASS, 0.1)
    if c.pixels(1, z) > 7:
        middle = (s3 + s4) / 2 + 0.1
        b.panel(middle - 0.05, middle + 0.05, y2, y3 - 0.06, paint)
        b.panel(0.1, length - 0.1, 0.3, 0.42, scaled(paint, 0.45))
        b.panel(s2 + 0.3, s2 + 1.8, 0.70, 0.73, scaled(paint, 1.25))
    c.fill(b.end(0.1, 0.9, 0.14, 0.3), (30, 30, 34), code)
    c.fill(b.end(0.0, 1.0, 0.24, 0.44), scaled(paint, 0.42), code)
    b.wheels([0.78, length - 0.8], 0.33)
    b.lamps(0.62, 0.18)
    if c.pixels(1, z) > 7:
        c.fill(b.end(0.36, 0.64, 0.5, 0.62), (232, 232, 224))
        if not away:
            c.fill(b.end(0.26, 0.74, 0.64, 0.76), scaled(paint, 0.3))
    if taxi:
        top, at = profile[3][1], z + length / 2
        c.fill(
            [(x - 0.3, top, at), (x + 0.3, top, at), (x + 0.3, top + 0.2, at), (x - 0.3, top + 0.2, at)],
            WHITE,
            code,
        )


def truck(c: Canvas, rng: Random, x: float, z: float, away: bool, code: int) -> None:
    """A cab and a cargo box on a dark chassis."""
    paint = rng.choice(CAR_PAINTS)
    box = rng.choice([(236, 236, 232), (226, 216, 196), (70, 132, 180), (206, 84, 52), (94, 148, 92)])
    logo, long = rng.choice(CAR_PAINTS), rng.uniform(5, 7)
    length, x0, x1 = long + 2.3, x - 1.2, x + 1.2
    c.cast(x0, x1, z, z + length, 3)
    b = Body(c, x0, x1, z, length, away, code)

    def cargo() -> None:
        b.prism([(0, 0.5), (0, 1.0), (length - 0.3, 1.0), (length - 0.3, 0.5)], (48, 48, 54))
        b.prism([(0, 1.0), (0, 3.5), (long, 3.5), (long, 1.0)], box)
        b.panel(0, long, 1.0, 1.22, scaled(box, 0.55))
        b.panel(long * 0.2, long * 0.8, 1.9, 2.7, mix(box, logo, 0.85))

    def cab() -> None:
        s = long + 0.25
        b.prism(
            [(s, 0.5), (s, 2.6), (s + 0.2, 2.85), (s + 1.5, 2.8), (length, 1.9), (length, 0.5)],
            paint,
            glass=(3,),
        )
        b.on_side([(s + 0.7, 1.7), (s + 0.7, 2.5), (s + 1.35, 2.5), (s + 1.8, 1.8), (s + 1.8, 1.7)], GLASS)

    if away:
        cab()
        cargo()
        c.fill(b.end(0.05, 0.95, 1.1, 3.35), scaled(box, 0.92))
        c.fill(b.end(0.485, 0.515, 1.1, 3.4), scaled(box, 0.5))
        c.fill(b.end(0.0, 1.0, 0.95, 1.1), scaled(box, 0.5))
        for u in (0.0, 0.4, 0.8):
            c.fill(b.end(u, u + 0.2, 0.6, 0.8), (214, 60, 40) if u != 0.4 else (236, 232, 222))
    else:
        cargo()
        cab()
        c.fill(b.end(0.06, 0.94, 1.75, 2.55), GLASS)
        c.fill(b.end(0.1, 0.9, 0.95, 1.45), scaled(paint, 0.35))
        c.fill(b.end(0.0, 1.0, 0.45, 0.65), (52, 52, 58))
    b.wheels([1.0, 2.1, length - 1.1], 0.48)
    b.lamps(0.66, 0.2)


def bus(c: Canvas, rng: Random, x: float, z: float, away: bool, code: int) -> None:
    """A city bus: one long window band, doors, and a lit destination."""
    paint = rng.choice([(206, 40, 40), (244, 190, 40), (40, 120, 90), (60, 100, 190), (240, 240, 236)])
    length, x0, x1 = 11.0, x - 1.27, x + 1.27
    c.cast(x0, x1, z, z + length, 2.8)
    b = Body(c, x0, x1, z, length, away, code)
    b.prism([(0, 0.35), (0, 3.0), (0.15, 3.15), (length - 0.15, 3.15), (length, 3.0), (length, 0.35)], paint)
    b.panel(0, length, 0.35, 0.6, scaled(paint, 0.4))
    b.panel(0.3, length - 0.2, 1.45, 2.65, GLASS)
    for s in (1.9, 3.5, 5.1, 6.7, 8.3, 9.9):
        b.panel(s - 0.06, s + 0.06, 1.45, 2.65, mix(GLASS, paint, 0.5))
    for s in (4.6, 9.2):
        b.panel(s, s + 1.1, 0.5, 2.6, mix(GLASS, (150, 170, 190), 0.35))
    c.fill(b.end(0.07, 0.93, 1.45 if away else 1.15, 2.55), GLASS)
    c.fill(b.end(0.07, 0.93, 2.05, 2.5), mix(GLASS, c.light.horizon, 0.35))
    c.lamp(b.end(0.2, 0.8, 2.66, 2.95), (255, 176, 40), 0.8, 0.4)
    c.fill(b.end(0.0, 1.0, 0.33, 0.6), (46, 46, 52), code)
    b.wheels([2.4, length - 2.5], 0.5)
    b.lamps(0.75, 0.26, 0.13)


def tram(c: Canvas, rng: Random, x: float, z: float, away: bool, code: int) -> None:
    """Two linked cars with a livery stripe, and a pantograph on the roof; the street lays the rails."""
    stripe = rng.choice([(196, 30, 48), (20, 110, 180), (30, 140, 84), (236, 150, 20)])
    cream, length, x0, x1 = (244, 238, 220), 20.0, x - 1.2, x + 1.2
    c.cast(x0, x1, z, z + length, 3)
    b = Body(c, x0, x1, z, length, away, code)
    for s in (9.0, 8.2):  # two arms of the pantograph, up to the contact shoe
        zz = z + s
        c.fill(
            [(x - 0.1, 3.5, zz), (x + 0.1, 3.5, zz), (x + 0.5, 4.5, zz), (x + 0.3, 4.5, zz)],
            (60, 60, 66),
            code,
        )
        c.fill(
            [(x - 0.1, 3.5, zz), (x + 0.1, 3.5, zz), (x - 0.3, 4.5, zz), (x - 0.5, 4.5, zz)],
            (60, 60, 66),
            code,
        )
    c.fill(
        [(x - 0.9, 4.45, z + 8), (x + 0.9, 4.45, z + 8), (x + 0.9, 4.6, z + 8), (x - 0.9, 4.6, z + 8)],
        (50, 50, 56),
        code,
    )
    for s0 in (10.2, 0.0) if away else (0.0, 10.2):
        s1 = s0 + 9.8
        b.prism([(s0, 0.3), (s0, 3.2), (s0 + 0.3, 3.5), (s1 - 0.3, 3.5), (s1, 3.2), (s1, 0.3)], cream)
        b.panel(s0, s1, 0.3, 0.62, (70, 70, 78))
        b.panel(s0, s1, 0.62, 1.35, stripe)
        b.panel(s0, s1, 3.02, 3.2, stripe)
        for k in range(5):
            left = s0 + 0.4 + 1.85 * k
            b.panel(left, left + 1.55, 0.8 if k in (1, 3) else 1.6, 2.75, GLASS)
        if s0 == (0.0 if away else 10.2):
            continue
        b.on_side([(9.8, 0.5), (10.2, 0.5), (10.2, 3.3), (9.8, 3.3)], (56, 56, 62), 0.15, code)
    c.fill(b.end(0.0, 1.0, 0.3, 0.62), (60, 60, 66))
    c.fill(b.end(0.0, 1.0, 0.62, 1.35), stripe)
    c.fill(b.end(0.1, 0.9, 1.5, 2.8), GLASS)
    c.fill(b.end(0.1, 0.9, 2.3, 2.75), mix(GLASS, c.light.horizon, 0.35))
    c.lamp(b.end(0.3, 0.7, 2.9, 3.15), (255, 190, 60), 0.8, 0.4)
    b.lamps(0.85, 0.24, 0.14)

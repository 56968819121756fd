"""The still part of toyscapes: ground, houses, walls, fences, hedges."""

from __future__ import annotations

from random import Random

from dpgan.data.toyscapes.canvas import (
    BUILDING,
    FENCE,
    ROAD,
    SIDEWALK,
    TERRAIN,
    VEGETATION,
    WALL,
    Canvas,
    Color,
    Point,
    mix,
    scaled,
)

NEAR, FAR = 2.2, 130.0  # the stretch of road that is drawn, in metres

FACADES: list[Color] = [
    (214, 178, 140), (196, 112, 84), (226, 208, 178), (170, 152, 140), (222, 190, 120), (176, 188, 196),
    (204, 138, 116), (158, 84, 70), (232, 224, 210), (146, 164, 150),
]  # fmt: skip
ROOFS: list[Color] = [(150, 70, 54), (98, 66, 60), (84, 88, 100), (128, 84, 62)]
AWNINGS: list[Color] = [(190, 44, 48), (40, 110, 92), (44, 80, 150), (228, 158, 44)]
GRASS: Color = (104, 142, 62)
ASPHALT: Color = (98, 98, 104)
PAVING: Color = (176, 168, 160)


def band(c: Canvas, x0: float, x1: float, z0: float, z1: float, color: Color, code: int | None = None) -> None:
    """A stretch of ground between x0 and x1; it follows the bend of the road."""
    steps = 1 if z1 - z0 < 4 or c.camera.curve == 0 else 16
    zs = [z0 * (z1 / z0) ** (i / steps) for i in range(steps + 1)]
    c.ground([(x0, 0, z) for z in zs] + [(x1, 0, z) for z in reversed(zs)], color, code)


class Layout:
    """Where things lie across the street, in metres from the camera; side -1 is left, 1 is right."""

    def __init__(self, rng: Random, tram: bool) -> None:
        self.parking = {-1: rng.random() < 0.55, 1: rng.random() < 0.55}
        self.tram_lane = -3.5 if tram else None
        self.oncoming = -7.0 if tram else -3.5
        self.kerb = {1: 1.9 + 2.2 * self.parking[1], -1: self.oncoming - 1.9 - 2.2 * self.parking[-1]}
        self.style = {s: rng.choices(["town", "houses", "park"], [5, 3, 2])[0] for s in (-1, 1)}
        verge = {s: 0.0 if rng.random() < 0.55 else rng.uniform(1.2, 2.2) for s in (-1, 1)}
        self.path = {s: self.kerb[s] + s * verge[s] for s in (-1, 1)}  # inner edge of the pavement
        self.front = {s: self.path[s] + s * rng.uniform(2.6, 4.2) for s in (-1, 1)}  # where the lots begin


def paint_ground(c: Canvas, rng: Random, lay: Layout, crossing: float | None) -> None:
    """Grass, pavement, kerbs, road and its markings."""
    worn, line = rng.uniform(0.88, 1.08), (232, 230, 220)
    band(c, -2000, 2000, NEAR, 400, mix(GRASS, (168, 150, 84), rng.uniform(0, 0.4)), TERRAIN)
    for s in (-1, 1):
        outer = lay.front[s] + s * (0.6 if lay.style[s] == "town" else 0.0)
        band(c, lay.path[s], outer, NEAR, FAR, PAVING, SIDEWALK)
        band(c, lay.kerb[s] - s * 0.05, lay.kerb[s] + s * 0.32, NEAR, FAR, (206, 202, 196), SIDEWALK)
    band(c, lay.kerb[-1], lay.kerb[1], NEAR, FAR, scaled(ASPHALT, worn), ROAD)
    for s in (-1, 1):  # the gutter's shade and the lines that bound the lanes
        band(c, lay.kerb[s] - s * 0.14, lay.kerb[s], NEAR, FAR, scaled(ASPHALT, 0.6))
        if lay.parking[s]:
            x = lay.kerb[s] - s * 2.2
            band(c, x - 0.06, x + 0.06, NEAR, FAR, scaled(line, 0.9))
    for x in (-1.75, *((lay.oncoming + 1.75,) if lay.tram_lane else ())):
        for k in range(12):
            z = NEAR + 0.8 + 6.5 * k
            band(c, x - 0.08, x + 0.08, z, z + 3.2, line)
    if lay.tram_lane is not None:
        band(c, lay.tram_lane - 1.3, lay.tram_lane + 1.3, NEAR, FAR, scaled(ASPHALT, worn * 1.14))
        for x in (lay.tram_lane - 0.75, lay.tram_lane + 0.75):
            band(c, x - 0.11, x + 0.11, NEAR, FAR, (58, 56, 58))
            band(c, x - 0.05, x + 0.05, NEAR, FAR, (196, 198, 204))
    if crossing is not None:
        x = lay.kerb[-1] + 0.5
        while x + 0.5 < lay.kerb[1]:
            band(c, x, x + 0.5, crossing, crossing + 2.6, line)
            x += 1.0


def house(c: Canvas, rng: Random, side: int, x: float, z0: float, z1: float, height: float, town: bool) -> None:
    """A house whose facade stands at x and looks across the street; in town with shops and a cornice."""
    face, paint = ("right" if side < 0 else "left"), scaled(rng.choice(FACADES), rng.uniform(0.86, 1.0))
    back, roof, trim = x + side * 11, rng.choice(ROOFS), mix(paint, (255, 252, 244), 0.6)
    shop, pitched = town and rng.random() < 0.65, not town or rng.random() < 0.5
    ridge = x + side * 5.5, height + (3.2 if pitched else 0)
    c.cast(min(x, back), max(x, back), z0, z1, height * 0.6)

    def wall(a: float, b: float, y0: float, y1: float) -> list[Point]:
        return [(x, y0, a), (x, y0, b), (x, y1, b), (x, y1, a)]

    gable: list[Point] = [
        (x, 0, z0),
        (x, height, z0),
        (ridge[0], ridge[1], z0),
        (back, height, z0),
        (back, 0, z0),
    ]
    c.fill(gable, scaled(paint, 0.92), BUILDING, "front")
    if pitched:
        over = x - side * 0.35
        eaves: list[Point] = [(over, height - 0.1, z0 - 0.3), (over, height - 0.1, z1)]
        c.fill([*eaves, (ridge[0], ridge[1], z1), (ridge[0], ridge[1], z0 - 0.3)], roof, BUILDING, "top")
    c.fill(wall(z0, z1, 0, height), paint, BUILDING, face)
    c.fill(wall(z0, z1, 0, 0.7), scaled(paint, 0.72), None, face)
    c.fill(wall(z0, z1, height - 0.45, height), trim if town else scaled(paint, 0.7), None, face)

    base = 3.7 if shop else 0.9
    floors, columns = max(1, int((height - base - 0.2) / 2.9)), max(1, int((z1 - z0) / 2.7))
    pitch = (z1 - z0) / columns
    sill = 0.62 * pitch / 2
    blind = rng.choice([None, None, (96, 124, 104), (150, 84, 66), (86, 104, 132)])
    for column in range(columns):
        middle = z0 + (column + 0.5) * pitch
        visible = c.pixels(1.7, middle) > 2
        for floor in range(floors):
            glint, lit = rng.random(), rng.random()
            if not visible:
                continue
            y = base + 0.55 + 2.9 * floor
            a, b = middle - sill, middle + sill
            glass = mix((46, 58, 76), c.light.horizon, 0.1 + 0.45 * glint * glint)
            large = c.pixels(1.7, middle) > 5
            if large:
                c.fill(wall(a - 0.14, b + 0.14, y - 0.14, y + 1.84), trim, None, face)
            if lit < 0.6 * c.light.lamps:
                c.lamp(wall(a, b, y, y + 1.7), mix((255, 206, 120), (255, 168, 76), glint), 1, 0.6)
            else:
                c.fill(wall(a, b, y, y + 1.7), glass, None, face)
            if large:
                c.fill(wall(a, b, y + 1.25, y + 1.7), scaled(glass, 0.7), None, face)
                c.fill(wall(middle - 0.05, middle + 0.05, y, y + 1.7), trim, None, face)
            if large and blind:
                for left in (a - 0.6, b + 0.1):
                    c.fill(wall(left, left + 0.5, y - 0.05, y + 1.75), blind, None, face)
    if shop:
        shopfront(c, rng, side, x, z0, z1)
    else:
        door, at = rng.choice(ROOFS), z0 + (z1 - z0) * rng.uniform(0.3, 0.7)
        c.fill(wall(at - 0.75, at + 0.75, 0, 2.7), trim, None, face)
        c.fill(wall(at - 0.55, at + 0.55, 0, 2.45), door, None, face)


def shopfront(c: Canvas, rng: Random, side: int, x: float, z0: float, z1: float) -> None:
    """Panes on the ground floor under a sign board and a striped awning."""
    face, board, cloth = ("right" if side < 0 else "left"), rng.choice(AWNINGS), rng.choice(AWNINGS)
    awning, count = rng.random() < 0.7, max(1, int((z1 - z0) / 3.4))
    pitch = (z1 - z0 - 0.6) / count
    for k in range(count):
        a, b = z0 + 0.5 + k * pitch, z0 + 0.2 + (k + 1) * pitch
        pane: list[Point] = [(x, 0.5, a), (x, 0.5, b), (x, 2.7, b), (x, 2.7, a)]
        if c.light.lamps > 0.2:
            c.lamp(pane, (255, 206, 130), 0.8, 1.2)
        else:
            c.fill(pane, (62, 76, 88), None, face)
        c.fill([pane[0], pane[1], (x, 1.15, b), (x, 1.15, a)], (112, 84, 66), None, face)  # goods on show
        for j in range(3 if c.pixels(0.5, a) > 4 else 0):
            g = a + (b - a) * (0.12 + 0.3 * j)
            c.fill(
                [(x, 1.15, g), (x, 1.15, g + 0.5), (x, 1.75, g + 0.4), (x, 1.75, g + 0.1)],
                AWNINGS[(j + k) % 4],
                None,
                face,
            )
        c.fill([(x, 0.5, b), (x, 0.5, b + 0.12), (x, 2.7, b + 0.12), (x, 2.7, b)], scaled(board, 0.6), None, face)
    c.fill([(x, 2.85, z0), (x, 2.85, z1), (x, 3.55, z1), (x, 3.55, z0)], board, None, face)
    c.fill([(x, 3.1, z0 + 1), (x, 3.1, z1 - 1), (x, 3.3, z1 - 1), (x, 3.3, z0 + 1)], (246, 238, 220), None, face)
    if awning:
        out, stripes = x - side * 1.1, max(4, int((z1 - z0) / 0.9))
        fine = c.pixels(0.9, z0) > 4
        for k in reversed(range(stripes if fine else 1)):
            a, b = (z0 + (z1 - z0) * (k + d) / (stripes if fine else 1) for d in (0, 1))
            color = cloth if k % 2 == 0 else (244, 238, 226)
            c.fill([(x, 2.9, a), (x, 2.9, b), (out, 2.45, b), (out, 2.45, a)], color, BUILDING, "top")
            c.fill(
                [(out, 2.45, a), (out, 2.45, b), (out, 2.2, b), (out, 2.2, a)],
                scaled(color, 0.9),
                BUILDING,
                face,
            )


def boundary(c: Canvas, rng: Random, kind: str, side: int, x: float, z0: float, z1: float) -> None:
    """A fence of pales, a stone wall with a coping, or a clipped hedge, along the street at x."""
    face = "right" if side < 0 else "left"

    def slab(a: float, b: float, y0: float, y1: float, color: Color, code: int | None = None) -> None:
        c.fill([(x, y0, a), (x, y0, b), (x, y1, b), (x, y1, a)], color, code, face)

    def end(y: float, depth: float, color: Color, code: int) -> None:
        c.fill([(x, 0, z0), (x, y, z0), (x + side * depth, y, z0), (x + side * depth, 0, z0)], color, code)

    if kind == "fence":
        wood, h = (
            rng.choice([(148, 98, 58), (228, 222, 208), (104, 122, 98), (120, 74, 50)]),
            rng.uniform(1.4, 1.9),
        )
        c.cast(x - 0.1, x + 0.1, z0, z1, h)
        slab(z0, z1, 0, h, scaled(wood, 0.72), FENCE)
        z = z0
        while z < z1:
            if c.pixels(0.5 * abs(x) / z, z) > 0.8:  # pales, as long as they can be told apart
                c.fill(
                    [(x, 0, z), (x, 0, z + 0.3), (x, h, z + 0.3), (x, h + 0.18, z + 0.15), (x, h, z)],
                    wood,
                    FENCE,
                    face,
                )
            z += 0.42
        for y in (0.35, h - 0.35):
            slab(z0, z1, y, y + 0.12, scaled(wood, 0.86))
    elif kind == "wall":
        stone, h = (
            rng.choice([(168, 152, 130), (150, 100, 82), (150, 148, 146), (190, 178, 156)]),
            rng.uniform(1.5, 2.3),
        )
        c.cast(x - 0.2, x + 0.2, z0, z1, h)
        end(h, 0.5, stone, WALL)
        slab(z0, z1, 0, h, stone, WALL)
        rows = int(h / 0.4)
        if c.pixels(0.4, z0) > 4:
            for row in range(1, rows):
                slab(z0, z1, row * h / rows - 0.025, row * h / rows + 0.025, scaled(stone, 0.7))
                z = z0 + 0.5 * (row % 2)
                while z < z1 and c.pixels(0.4, z) > 4:
                    slab(z, z + 0.06, (row - 1) * h / rows, row * h / rows, scaled(stone, 0.7))
                    z += 1.0
        c.fill(
            [(x, h, z0), (x, h, z1), (x + side * 0.6, h, z1), (x + side * 0.6, h, z0)],
            scaled(stone, 1.1),
            WALL,
            "top",
        )
        slab(z0, z1, h - 0.12, h + 0.12, scaled(stone, 1.2), WALL)
    else:
        leaf, h = rng.choice([(62, 108, 46), (80, 122, 50), (52, 94, 56)]), rng.uniform(1.1, 1.9)
        c.cast(min(x, x + side), max(x, x + side), z0, z1, h)
        end(h, 1.2, scaled(leaf, 0.9), VEGETATION)
        slab(z0, z1, 0, h, leaf, VEGETATION)
        slab(z0, z1, 0, 0.3, scaled(leaf, 0.6))
        z = z0 + 0.2
        while z < z1:
            c.disc(
                x + side * 0.5,
                h - 0.1,
                z,
                rng.uniform(0.28, 0.48),
                scaled(leaf, rng.uniform(0.95, 1.2)),
                VEGETATION,
            )
            z += 0.7


def skyline(c: Canvas, rng: Random) -> None:
    """What closes the view at the end of the street: pale blocks and woods."""
    woods = rng.random() < 0.5
    x = -150.0
    while x < 150:
        w, h, z = rng.uniform(8, 20), rng.uniform(7, 26), rng.uniform(135, 160)
        if rng.random() < (0.75 if woods else 0.3):
            for k in range(4):
                c.disc(x + w * k / 4, h * 0.15, z, h * rng.uniform(0.26, 0.36), (70, 104, 62), VEGETATION)
            c.fill([(x, 0, z), (x + w, 0, z), (x + w, h * 0.25, z), (x, h * 0.25, z)], (70, 104, 62), VEGETATION)
        else:
            c.fill(
                [(x, 0, z), (x + w, 0, z), (x + w, h, z), (x, h, z)],
                scaled(rng.choice(FACADES), 0.8),
                BUILDING,
            )
        x += w * 0.8

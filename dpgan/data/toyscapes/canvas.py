"""The painter behind toyscapes: a pinhole camera, one light, and two buffers that receive the same polygons.

World coordinates are metres: x to the right of the camera, y up from the road, z along the road. Whatever is
drawn goes into a colour buffer and, where it has a code, into a code buffer of the same shape, both `SUPER` times
finer than the result. Averaging the colours and taking the middle sample of the codes gives an antialiased image
and hard labels of exactly the same outlines.

A *code* is a pixel of Cityscapes' instance maps: `id * 1000 + k` for things, the class id for everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPER = 3  # odd: the middle sample of a pixel is its centre
TILE = 256  # side of the noise tiles

Color = tuple[float, float, float]
Point = tuple[float, float, float]

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = (
    7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23,
)  # fmt: skip
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33

# Strength of the surface noise by class id: blotches of the ground plane, and fine grain on upright things.
GROUND_NOISE = {ROAD: 0.10, SIDEWALK: 0.07, TERRAIN: 0.26}
UPRIGHT_NOISE = {VEGETATION: 0.28, TERRAIN: 0.08, BUILDING: 0.05, WALL: 0.13, FENCE: 0.10}


class Camera(NamedTuple):
    """Focal length, horizon and pan in image heights; height in metres; curve: how the road bends, in 1/m."""

    focal: float
    horizon: float
    pan: float
    height: float
    curve: float


class Light(NamedTuple):
    """One time of day. Colours of light are factors, the others 0..255."""

    sun: Color
    ambient: Color
    zenith: Color
    horizon: Color
    clouds: Color
    cover: float  # share of the sky under clouds, about
    haze: float  # metres after which 1/e of the contrast is left
    lamps: float  # 0: lamps off and windows dark; 1: night
    side: int = 1  # the sun stands on the left (-1) or on the right (1)
    wet: float = 0.0  # how much the road mirrors


LIGHTS = {
    "noon": Light(
        (0.62, 0.58, 0.48), (0.56, 0.60, 0.68), (58, 124, 214),
        (196, 222, 244), (252, 252, 255), 0.42, 150, 0,
    ),
    "morning": Light(
        (0.66, 0.52, 0.38), (0.54, 0.57, 0.66), (104, 158, 220),
        (250, 226, 200), (255, 240, 226), 0.5, 75, 0,
    ),
    "evening": Light(
        (0.76, 0.53, 0.33), (0.52, 0.50, 0.58), (84, 116, 186),
        (255, 198, 132), (255, 206, 164), 0.5, 120, 0.3,
    ),
    "overcast": Light(
        (0.10, 0.10, 0.10), (0.80, 0.83, 0.87), (158, 170, 186),
        (218, 224, 230), (232, 236, 240), 0.75, 90, 0.1,
    ),
    "dusk": Light(
        (0.24, 0.13, 0.14), (0.38, 0.39, 0.56), (36, 44, 104),
        (240, 138, 112), (206, 116, 132), 0.5, 110, 1,
    ),
}  # fmt: skip


@cache
def noise(power: float, seed: int) -> np.ndarray:
    """float32 [TILE, TILE], tileable noise of mean 0 and deviation 1 with spectrum 1/f^power."""
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((TILE, TILE)))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    tile = np.fft.irfft2(white / radius**power, s=(TILE, TILE))
    return (tile / tile.std()).astype(np.float32)


def mix(a: Color, b: Color, t: float) -> Color:
    """`a` at t=0, `b` at t=1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def scaled(color: Color, factor: float) -> Color:
    """A lighter or darker tone of a colour."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


class Canvas:
    """Polygons in world coordinates go in, far ones first; `finish` gives image and codes."""

    def __init__(self, size: tuple[int, int], camera: Camera, light: Light) -> None:
        self.height, self.width = size
        self.camera, self.light = camera, light
        self.scale = self.height * SUPER  # buffer pixels in an image height
        self._k = camera.focal * self.scale
        self._cx = self.width * SUPER / 2 + camera.pan * self.scale
        self._cy = camera.horizon * self.scale
        sun, ambient = light.sun, light.ambient
        # Light on faces by where they look; the sun stands aside and somewhat behind the camera.
        cosine = {
            "front": 0.55, "top": 1.0, "left": 0.9 * (light.side < 0), "right": 0.9 * (light.side > 0), "dark": 0.0
        }  # fmt: skip
        self._shade = {face: tuple(a + s * c for a, s in zip(ambient, sun, strict=True)) for face, c in cosine.items()}
        extent = (self.width * SUPER, self.height * SUPER)
        self._color = Image.new("RGB", extent, self._packed(light.horizon))
        self._code = Image.new("I", extent, SKY)
        self._shadow = Image.new("L", (self.width, self.height))
        self._glow = Image.new("RGB", (max(1, self.width // 2), max(1, self.height // 2)))
        self._draw, self._draw_code = ImageDraw.Draw(self._color), ImageDraw.Draw(self._code)
        self._draw_shadow, self._draw_glow = ImageDraw.Draw(self._shadow), ImageDraw.Draw(self._glow)

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels of the result a length at depth z covers; what is below one is not worth drawing."""
        return self._k * metres / z / SUPER

    def project(self, points: Iterable[Point]) -> list[tuple[float, float]]:
        """World points -> buffer coordinates."""
        k, cx, cy, up, curve = self._k, self._cx, self._cy, self.camera.height, self.camera.curve
        return [(cx + k * (x / z + curve * z), cy - k * (y - up) / z) for x, y, z in points]

    def tone(self, color: Color, z: float, face: str = "front") -> int:
        """What a surface looks like from z metres: lit by where it looks, then veiled by the haze."""
        r, g, b = self._shade[face]
        return self._veiled((color[0] * r, color[1] * g, color[2] * b), z)

    def _veiled(self, color: Color, z: float) -> int:
        clear = 2.718281828 ** (-z / self.light.haze)
        return self._packed(mix(self.light.horizon, color, clear))

    @staticmethod
    def _packed(color: Color) -> int:
        r, g, b = color
        return min(255, int(r)) | min(255, int(g)) << 8 | min(255, int(b)) << 16

    def fill(self, points: Sequence[Point], color: Color, code: int | None = None, face: str = "front") -> None:
        """A polygon; without a code it is a detail on what lies beneath it."""
        outline = self.project(points)
        self._draw.polygon(outline, self.tone(color, points[0][2], face))
        if code is not None:
            self._draw_code.polygon(outline, code)
            if self.light.lamps > 0.2:  # hides the glow of what is behind
                f = self._glow.height / self.scale
                self._draw_glow.polygon([(u * f, v * f) for u, v in outline], 0)

    def ground(self, points: Sequence[Point], color: Color, code: int | None = None) -> None:
        """A polygon on the ground; `finish` gives it its haze."""
        outline = self.project(points)
        r, g, b = self._shade["top"]
        self._draw.polygon(outline, self._packed((color[0] * r, color[1] * g, color[2] * b)))
        if code is not None:
            self._draw_code.polygon(outline, code)

    def disc(self, x: float, y: float, z: float, r: float, color: Color, code: int | None = None) -> None:
        """A ball of radius r."""
        (u, v), rr = self.project([(x, y, z)])[0], self._k * r / z
        if u + rr < 0 or u - rr > self._color.width:
            return
        box = (u - rr, v - rr, u + rr, v + rr)
        self._draw.ellipse(box, self.tone(color, z))
        if code is not None:
            self._draw_code.ellipse(box, code)

    def lamp(self, points: Sequence[Point], color: Color, on: float, reach: float) -> None:
        """A polygon that shines: `on` 0..1 is how brightly, `reach` how far its glow does, in metres."""
        z = points[0][2]
        outline = self.project(points)
        self._draw.polygon(outline, self._veiled(scaled(color, 0.6 + 0.4 * on * max(self.light.lamps, 0.5)), z))
        if on * self.light.lamps > 0.2 and self.pixels(reach, z) > 1:
            f = self._glow.height / self.scale
            u = sum(p[0] for p in outline) / len(outline) * f
            v = sum(p[1] for p in outline) / len(outline) * f
            r, strength = self._k * reach / z * f, 0.5 * on * self.light.lamps
            self._draw_glow.ellipse(
                (u - r, v - r, u + r, v + r),
                (int(color[0] * strength), int(color[1] * strength), int(color[2] * strength)),
            )

    def shadow(self, points: Sequence[Point], strength: float) -> None:
        """A shadow on the ground."""
        outline = [(u / SUPER, v / SUPER) for u, v in self.project(points)]
        self._draw_shadow.polygon(outline, int(255 * strength))

    def cast(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        """The shadow of a box: where it stands, and, if the sun is out, away from the sun."""
        self.shadow([(x0, 0, z0 - 0.1), (x1, 0, z0 - 0.1), (x1, 0, z1), (x0, 0, z1)], 1.0)
        sunlight = self.light.sun[0]
        if sunlight > 0.3:
            dx, dz = -self.light.side * height * 0.8, height * 0.25
            near, far = (x1, x0) if dx < 0 else (x0, x1)
            self.shadow(
                [(near, 0, z0), (far, 0, z0), (far + dx, 0, z0 + dz), (far + dx, 0, z1 + dz), (near, 0, z1)],
                0.55,
            )

    def sky(self, offset: tuple[int, int], sun: tuple[float, float]) -> None:
        """Gradient, clouds that thin out towards the horizon, and a halo where the sun is (in image heights)."""
        light, rows, columns = self.light, 64, 192
        v = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows * self.camera.horizon
        u = ((np.arange(columns, dtype=np.float32)[None] + 0.5) / columns - 0.5) * self.width / self.height
        up = 1 - v / self.camera.horizon  # 1 at the top, 0 at the horizon
        depth = 1 / (0.15 + up)
        tile = noise(1.7, 3)
        cloud = tile[(depth * 40 + offset[0]).astype(int) % TILE, (u * depth * 26 + offset[1]).astype(int) % TILE]
        body = np.clip(cloud + 2.4 * light.cover - 1.0, 0, 1.2)[..., None] / 1.2 * np.clip(up * 3, 0, 1)[..., None]
        zenith, horizon, clouds = (np.array(c, np.float32) for c in (light.zenith, light.horizon, light.clouds))
        clear = horizon + (zenith - horizon) * (up**0.75)[..., None]
        lit = clouds * (1 - 0.16 * np.clip(cloud - 0.6, 0, 1.2))[..., None]  # thick clouds are darker below
        image = clear + (lit - clear) * body * 0.85
        halo = np.exp(-((u - sun[0]) ** 2 + (v - sun[1]) ** 2) / 0.03)[..., None]
        image += halo * np.array(light.sun, np.float32) * 130
        small = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        extent = (self.width, math.ceil(self.camera.horizon * self.height))
        smooth = small.resize(extent, Image.Resampling.BILINEAR)
        self._color.paste(smooth.resize((extent[0] * SUPER, extent[1] * SUPER), Image.Resampling.NEAREST))

    def finish(self, offset: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, 3] and codes uint16 [H, W]; `offset` shifts the surface noise."""
        half = SUPER // 2
        code = np.asarray(self._code)[half::SUPER, half::SUPER]
        label = np.where(code >= 1000, code // 1000, code)
        image = np.asarray(self._color.reduce(SUPER)).astype(np.float32)
        image *= self._upright_texture(label, offset)[..., None]
        top = min(self.height - 1, int(self.camera.horizon * self.height) + 1)
        image[top:] = self._ground(image, label[top:], top, offset)
        if self.light.lamps > 0.2:
            blurred = self._glow.filter(ImageFilter.GaussianBlur(self._glow.height * 0.018))
            glow = np.asarray(blurred.resize((self.width, self.height), Image.Resampling.BILINEAR), np.float32)
            image += glow * (1 - image / 255).clip(0)
        return np.clip(image, 0, 255).astype(np.uint8), code.astype(np.uint16)

    def _upright_texture(self, label: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
        """Factor [H, W] on what stands upright: leaves, plaster, stone."""
        strength = np.zeros(256, np.float32)
        strength[list(UPRIGHT_NOISE)] = list(UPRIGHT_NOISE.values())
        step = 330 / self.height  # noise cells an image height
        rows = (np.arange(self.height) * step).astype(int) + offset[0]
        columns = (np.arange(self.width) * step).astype(int) + offset[1]
        grain = noise(0.9, 1)[np.ix_(rows % TILE, columns % TILE)]
        # Near the horizon is far away, where leaves and stones cannot be told apart.
        grain *= (np.abs(np.arange(self.height) / self.height - self.camera.horizon) / 0.12).clip(0.25, 1)[:, None]
        return 1 + strength[label] * grain.clip(-2, 2) * 0.6

    def _ground(self, image: np.ndarray, label: np.ndarray, top: int, offset: tuple[int, int]) -> np.ndarray:
        """Everything below row `top` with the ground's surface, shadows, mirror and haze."""
        light, camera = self.light, self.camera
        k = camera.focal * self.height
        v = np.arange(top, self.height, dtype=np.float32)[:, None] + 0.5
        u = np.arange(self.width, dtype=np.float32)[None] + 0.5
        z = k * camera.height / (v - camera.horizon * self.height).clip(0.25)
        x = ((u - self._cx / SUPER) / k - camera.curve * z) * z
        strength = np.zeros(256, np.float32)
        strength[list(GROUND_NOISE)] = list(GROUND_NOISE.values())
        flat = strength[label] > 0
        pixel = z * z / (k * camera.height)  # metres along the road in a pixel: finer surface is not to be seen
        fine = noise(0.6, 2)[(z * 22).astype(np.int32) % TILE, (x * 44 + offset[1]).astype(np.int32) % TILE]
        patches = noise(1.5, 4)[(z * 5 + offset[0]).astype(np.int32) % TILE, (x * 9).astype(np.int32) % TILE]
        factor = 1 + strength[label] * (np.minimum(1, 0.06 / pixel) * fine * 0.6 + patches * 0.35)
        joints = (x - np.floor(x) < z / k) | (z - np.floor(z) < np.maximum(0.03, pixel))  # of slabs a metre wide
        factor -= (joints & (label == SIDEWALK)) * (0.2 * np.minimum(1, 0.12 / pixel))
        soft = self._shadow.filter(ImageFilter.BoxBlur(self.height / 220))
        shadow = np.asarray(soft)[top:].astype(np.float32) / 255 * flat
        tint = 1 - shadow[..., None] * np.array([0.62, 0.58, 0.50], np.float32)
        result = image[top:] * factor[..., None] * tint
        if light.wet:
            source = (2 * top - 1 - np.arange(top, self.height)).clip(0)
            mirror = Image.fromarray(np.clip(image[source], 0, 255).astype(np.uint8))
            mirrored = np.asarray(mirror.filter(ImageFilter.BoxBlur((self.height / 120, self.height / 24))), np.float32)
            result += (mirrored - result) * (light.wet * (label == ROAD) * (1 - shadow))[..., None]
        veil = (flat * (1 - np.exp(-z / light.haze)))[..., None]
        result += (np.array(light.horizon, np.float32) - result) * veil
        return result

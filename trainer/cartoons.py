"""A data set of our own: cartoon cats and dogs, drawn with Pillow from a seed.

It is what `make demo` and the tests train on where no photos are at hand: no download, no licence.
Cats have pointed ears, whiskers and a thin curved tail; dogs have hanging ears, a muzzle with a big
nose, often a tongue, and a short tail. Colour, pattern, pose, size, place and background vary and
tell nothing of the species.
"""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter

SPECIES = ("cats", "dogs")

Colour = tuple[int, int, int]
Point = tuple[float, float]

_SUPERSAMPLING = 2
_FURS: tuple[Colour, ...] = (
    (226, 152, 76), (120, 84, 58), (70, 66, 70), (236, 226, 208), (168, 168, 176),
    (196, 120, 64), (240, 200, 140), (92, 108, 128), (150, 110, 90), (250, 246, 240),
)  # fmt: skip
_EYES: tuple[Colour, ...] = ((92, 160, 70), (214, 160, 40), (80, 140, 200), (110, 70, 40))


class Pen:
    """Draws shapes given in the animal's own coordinates, turned, mirrored, scaled and moved."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, centre: Point, scale: float, angle: float, mirror: bool
    ) -> None:
        self._draw, self._centre, self._scale, self._mirror = draw, centre, scale, mirror
        self._cos, self._sin = math.cos(angle), math.sin(angle)

    def _place(self, point: Point) -> Point:
        x, y = (-point[0] if self._mirror else point[0]) * self._scale, point[1] * self._scale
        return (
            self._centre[0] + x * self._cos - y * self._sin,
            self._centre[1] + x * self._sin + y * self._cos,
        )

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self._draw.polygon([self._place(p) for p in points], fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        placed = [self._place(p) for p in points]
        thick = max(1, round(width * self._scale))
        self._draw.line(placed, fill=fill, width=thick, joint="curve")
        for x, y in (placed[0], placed[-1]):
            r = thick / 2
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, tilt: float = 0.0
    ) -> None:
        turns = (2 * math.pi * k / 48 for k in range(48))
        c, s = math.cos(tilt), math.sin(tilt)
        corners = ((rx * math.cos(t), ry * math.sin(t)) for t in turns)
        self.polygon([(x + u * c - v * s, y + u * s + v * c) for u, v in corners], fill)


def draw_cartoon(species: str, random: Random) -> Image.Image:
    """One RGB picture of a cat or a dog (`species` as in SPECIES), 200 to 400 pixels a side."""
    width, height = random.randint(200, 400), random.randint(200, 400)
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    image = _background(size, random)
    draw = ImageDraw.Draw(image)
    fur = _vary(random.choice(_FURS), 18, random)
    scale = min(size) * random.uniform(0.17, 0.26)
    centre = (size[0] * random.uniform(0.36, 0.64), size[1] * random.uniform(0.34, 0.5))
    mirror = random.random() < 0.5
    _body(Pen(draw, centre, scale, random.uniform(-0.12, 0.12), mirror), species, fur, random)
    _head(Pen(draw, centre, scale, random.uniform(-0.4, 0.4), mirror), species, fur, random)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if random.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    return image


def write_cartoons(folder: Path, *, per_class: int, seed: int = 0) -> None:
    """Write `folder`/cats/cat_0000.jpg ..., `folder`/dogs/dog_0000.jpg ...; the same for a seed."""
    for species in SPECIES:
        (folder / species).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            random = Random(f"{seed} {species} {number}")
            path = folder / species / f"{species[:-1]}_{number:04d}.jpg"
            draw_cartoon(species, random).save(path, quality=random.randint(75, 95))


def _body(pen: Pen, species: str, fur: Colour, random: Random) -> None:
    dark, belly = _shade(fur, 0.82), _shade(fur, 1.18)
    lying = random.random() < 0.4
    hip = (0.9, 1.7) if lying else (0.5, 2.2)
    if species == "cats":  # long, thin, curled at the end
        bend = random.uniform(0.6, 1.3)
        arc = [t / 12 * math.pi * bend for t in range(13)]
        tail = [
            (hip[0] + 0.5 + 0.75 * math.sin(a), hip[1] - 0.75 * (1 - math.cos(a)) * bend)
            for a in arc
        ]
        pen.line(tail, 0.2, dark)
    else:  # short, straight, raised
        lift = random.uniform(0.2, 1.0)
        pen.line([hip, (hip[0] + 0.9, hip[1] - lift)], 0.3, dark)
    if lying:
        pen.ellipse(0.5, 1.6, 1.5, 0.75, fur)
        for x in (-0.6, -0.2, 1.3, 1.7):
            pen.ellipse(x, 2.2, 0.32, 0.2, dark)
    else:
        pen.ellipse(0, 1.9, 0.95, 1.3, fur)
        pen.ellipse(0, 2.0, 0.5, 0.85, belly)
        for x in (-0.45, 0.45):
            pen.line([(x, 2.1), (x, 3.0)], 0.36, fur)
            pen.ellipse(x, 3.1, 0.3, 0.2, dark)


def _head(pen: Pen, species: str, fur: Colour, random: Random) -> None:
    dark, light = _shade(fur, 0.7), _shade(fur, 1.25)
    pink, ink = (230, 150, 160), (30, 26, 28)
    eye = random.choice(_EYES)
    cat = species == "cats"
    if cat:
        spread, tip = random.uniform(0.62, 0.78), random.uniform(1.25, 1.5)
        for side in (-1, 1):
            pen.polygon([(side * 0.25, -0.75), (side * spread * 1.2, -tip), (side * 0.95, -0.3)],
                        dark)  # fmt: skip
            pen.polygon([(side * 0.42, -0.75), (side * spread * 1.13, -tip * 0.87),
                         (side * 0.82, -0.45)], pink)  # fmt: skip
    pen.ellipse(0, 0, 1.0, random.uniform(0.84, 0.92) if cat else random.uniform(0.9, 1.02), fur)
    if random.random() < 0.4:
        pen.ellipse(0.42, -0.2, 0.38, 0.42, random.choice((dark, light)))
    if random.random() < 0.4:
        for x in (-0.25, 0.0, 0.25):
            pen.line([(x, -0.82), (x * 0.8, -0.5)], 0.08, dark)
    height, gaze = random.uniform(-0.22, -0.08), random.uniform(-0.05, 0.05)
    opening = random.choice((0.1, 0.17, 0.2))
    for side in (-1, 1):
        x = side * 0.42
        pen.ellipse(x, height, 0.21, opening, (252, 252, 248))
        pen.ellipse(x + gaze, height, 0.16, min(opening, 0.16), eye)
        pen.ellipse(x + gaze, height, 0.05 if cat else 0.09, min(opening, 0.14), ink)
    if cat:
        for side in (-1, 1):
            pen.ellipse(side * 0.19, 0.42, 0.24, 0.19, light)
        pen.polygon([(-0.11, 0.24), (0.11, 0.24), (0, 0.37)], pink)
        for side in (-1, 1):
            for rise in (-0.12, 0.03, 0.18):
                pen.line([(side * 0.3, 0.4), (side * 1.2, 0.36 + rise)], 0.025, (246, 246, 246))
    else:
        if random.random() < 0.5:
            pen.ellipse(0.05, 0.88, 0.16, 0.3, (226, 96, 110))
        pen.ellipse(0, 0.48, 0.5, 0.42, light)
        pen.ellipse(0, 0.28, 0.2, 0.15, ink)
        pen.line([(0, 0.4), (0, 0.66)], 0.04, ink)
        drop, swing = random.uniform(0.6, 0.8), random.uniform(0.1, 0.45)
        for side in (-1, 1):
            pen.ellipse(side * 1.0, 0.02, 0.3, drop, dark, tilt=-side * swing)


def _background(size: tuple[int, int], random: Random) -> Image.Image:
    top, bottom = _any_colour(random), _any_colour(random)
    column = Image.new("RGB", (1, 64))
    for y in range(64):
        mix = [round(a + (b - a) * y / 63) for a, b in zip(top, bottom, strict=True)]
        column.putpixel((0, y), (mix[0], mix[1], mix[2]))
    image = column.resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    width, height = size
    kind = random.choice(("plain", "meadow", "wall", "confetti"))
    if kind == "meadow":
        horizon = height * random.uniform(0.5, 0.8)
        green = _vary((110, 170, 90), 40, random)
        draw.rectangle((0, horizon, width, height), fill=green)
        x, r = width * random.random(), height * 0.09
        draw.ellipse((x - r, r * 0.6, x + r, r * 2.6), fill=(250, 226, 120))
    elif kind == "wall":
        stripe, step = _any_colour(random), random.randint(30, 90)
        for x in range(0, width, 2 * step):
            draw.rectangle((x, 0, x + step, height), fill=stripe)
        draw.rectangle((0, height * 0.8, width, height), fill=_any_colour(random))
    elif kind == "confetti":
        for _ in range(random.randint(10, 40)):
            u, v = width * random.random(), height * random.random()
            r = min(size) * random.uniform(0.01, 0.07)
            draw.ellipse((u - r, v - r, u + r, v + r), fill=_any_colour(random))
    return image


def _any_colour(random: Random) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(
        random.random(), random.uniform(0.1, 0.6), random.uniform(0.45, 1.0)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _vary(colour: Colour, by: int, random: Random) -> Colour:
    red, green, blue = (min(255, max(0, c + random.randint(-by, by))) for c in colour)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue

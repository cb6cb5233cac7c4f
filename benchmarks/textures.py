"""Pictures that no photo set holds: eight kinds of texture, drawn with NumPy from a seed.

Colours, scale, angle and light vary and tell nothing of the kind; what does is the pattern alone.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 256

Field = npt.NDArray[np.float64]  # [S, S]
Draw = Callable[[Field, Field, np.random.Generator], Field]  # of u, v, in periods -> [0, 1]


def write_textures(folder: Path, *, per_class: int, seed: int = 0) -> None:
    """Write `folder`/<kind>/0000.jpg ...; the same for a seed."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            generator = np.random.default_rng([seed, list(KINDS).index(kind), number])
            draw_texture(kind, generator).save(folder / kind / f"{number:04d}.jpg", quality=90)


def draw_texture(kind: str, generator: np.random.Generator) -> Image.Image:
    """One RGB picture of 256 px a side; `kind` as in KINDS."""
    angle, periods = generator.uniform(0, np.pi), generator.uniform(5, 14)
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE * periods + generator.uniform(0, 100, 2)[:, None, None]
    u, v = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    pattern = KINDS[kind](u, v, generator)[..., None]
    dark, light = generator.uniform(0, 255, (2, 3))
    while np.abs(dark - light).sum() < 150:
        dark, light = generator.uniform(0, 255, (2, 3))
    shade = 1 + 0.25 * generator.uniform(-1, 1) * np.linspace(-1, 1, _SIDE)[:, None, None]
    pixels = (dark + (light - dark) * pattern) * shade
    pixels += generator.normal(0, generator.uniform(2, 10), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _clouds(u: Field, v: Field, generator: np.random.Generator, octaves: int = 4) -> Field:
    """Value noise of several octaves (Perlin 1985), about 0, of about one unit."""
    total = np.zeros_like(u)
    for octave in range(octaves):
        grid = generator.uniform(-1, 1, (64, 64))
        a, b = u * 2**octave / 4, v * 2**octave / 4
        i, j = np.floor(a).astype(int), np.floor(b).astype(int)
        s, t = (3 * f**2 - 2 * f**3 for f in (a - i, b - j))
        corners = [[grid[(i + p) % 64, (j + q) % 64] for q in (0, 1)] for p in (0, 1)]
        rows = [low + (high - low) * t for low, high in corners]
        total += (rows[0] + (rows[1] - rows[0]) * s) / 2**octave
    return total


def _stripes(u: Field, v: Field, generator: np.random.Generator) -> Field:
    return ((u + 0.1 * _clouds(u, v, generator)) % 1 < generator.uniform(0.35, 0.65)).astype(float)


def _waves(u: Field, v: Field, generator: np.random.Generator) -> Field:
    bent = u + generator.uniform(0.3, 0.6) * np.sin(2 * np.pi * v * generator.uniform(0.3, 0.6))
    return (bent % 1 < generator.uniform(0.35, 0.65)).astype(float)


def _checker(u: Field, v: Field, generator: np.random.Generator) -> Field:
    return ((np.floor(u) + np.floor(v)) % 2).astype(float)


def _dots(u: Field, v: Field, generator: np.random.Generator) -> Field:
    return np.asarray(np.hypot(u % 1 - 0.5, v % 1 - 0.5) < generator.uniform(0.25, 0.42), float)


def _bricks(u: Field, v: Field, generator: np.random.Generator) -> Field:
    shifted = u / 2 + 0.5 * (np.floor(v) % 2)
    gap = generator.uniform(0.08, 0.18)
    return ((shifted % 1 > gap / 2) & (v % 1 > gap)).astype(float)


def _cells(u: Field, v: Field, generator: np.random.Generator) -> Field:
    """Distance to the nearest of random points less that to the second (Worley 1996)."""
    jitter = generator.uniform(0, 1, (2, 64, 64))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    distances = []
    for p in (-1, 0, 1):
        for q in (-1, 0, 1):
            du, dv = jitter[:, (i + p) % 64, (j + q) % 64]
            distances.append(np.hypot(i + p + du - u, j + q + dv - v))
    first, second = np.sort(distances, axis=0)[:2]
    return np.clip((second - first) * 3, 0, 1)


def _marble(u: Field, v: Field, generator: np.random.Generator) -> Field:
    turned = u / 2 + 1.5 * np.abs(_clouds(u / 2, v / 2, generator, 5))
    return np.abs(np.sin(np.pi * turned)) ** 0.5


def _noise(u: Field, v: Field, generator: np.random.Generator) -> Field:
    return np.clip(0.5 + 0.6 * _clouds(u, v, generator, 5), 0, 1)


KINDS: dict[str, Draw] = {
    "bricks": _bricks,
    "cells": _cells,
    "checker": _checker,
    "dots": _dots,
    "marble": _marble,
    "noise": _noise,
    "stripes": _stripes,
    "waves": _waves,
}

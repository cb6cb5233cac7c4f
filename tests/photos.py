"""Pictures drawn with Pillow, and their encodings."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def drawing(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A few seeded discs on a gradient: each seed another picture, nowhere symmetrical."""
    generator = np.random.default_rng(seed)
    across = np.linspace(0, 200, width)[None, :, None]
    down = np.linspace(0, 55, height)[:, None, None]
    tint = generator.uniform(0.3, 1.0, 3)
    image = Image.fromarray(((across + down) * tint).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        radius = generator.uniform(2, max(3, min(width, height) / 4))
        colour = tuple(int(c) for c in generator.integers(0, 256, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def noise(side: int, seed: int = 0) -> Image.Image:
    """Every pixel random: it can't be compressed, and no filter leaves it as it was."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def black() -> bytes:
    """To a familiar version of tests.tiny unfamiliar."""
    return encode(Image.new("RGB", (32, 32)), "PNG")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int = 96, height: int = 64, seed: int = 0) -> bytes:
    return encode(drawing(width, height, seed), "JPEG", quality=90)


def slow_png(seed: int = 0) -> bytes:
    """A small file that takes long to decode: 4 million pixels that no draft mode can skip."""
    return encode(noise(75, seed).resize((2400, 1800), Image.Resampling.NEAREST), "PNG")

"""Weather of ImageNet-C: snow, frost, fog and brightness (arXiv:1903.12261, section 4.1)."""

import numpy as np

from trainer.analysis.corruptions.fractal import plasma
from trainer.analysis.corruptions.lengths import Image, blur_along, scaled, zoom

# mean and deviation of the noise, its enlargement, what counts as a flake, radius and sigma of the
# fall in pixels, share of the picture that is not whitened
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_FROST = (
    (1, 0.4),
    (0.8, 0.6),
    (0.7, 0.7),
    (0.65, 0.7),
    (0.6, 0.75),
)  # of the picture, of the frost
_FOG = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # density, decay of its roughness
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def snow(image: Image, severity: int, generator: np.random.Generator) -> Image:
    mean, deviation, enlargement, least, radius, sigma, share = _SNOW[severity - 1]
    size = image.shape[0]
    flakes = generator.normal(mean, deviation, (size, size)).astype(np.float32)
    flakes = zoom(flakes, 1 + (enlargement - 1) * min(size / 224, 1))
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    angle = generator.uniform(-135, -45)
    flakes = blur_along(flakes, scaled(radius, size), scaled(sigma, size), angle)[..., np.newaxis]
    grey = (image @ _LUMA)[..., np.newaxis]
    whitened = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)


def frost(image: Image, severity: int, generator: np.random.Generator) -> Image:
    picture, ice = _FROST[severity - 1]
    return np.float32(picture) * image + np.float32(ice) * _ice(image.shape[0], generator)


def _ice(size: int, generator: np.random.Generator) -> Image:
    """A window pane with frost, drawn: float32 [S, S, 3].

    Ridges of cloudy noise are the needles, denser towards the border. Brightness (0.45 to 0.8),
    contrast (standard deviation 0.11) and the blue tint are those of the photos in the ImageNet-C
    code.
    """
    needles = np.zeros((size, size), np.float32)
    for decay, weight in ((1.6, 1.0), (1.3, 0.7), (1.15, 0.4)):
        needles += weight * (1 - np.abs(2 * plasma(size, decay, generator) - 1)) ** 4
    line = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    needles += 0.6 * np.maximum(line[:, None], line[None, :]) ** 3
    needles = (needles - needles.mean()) / needles.std()
    grey = generator.uniform(0.45, 0.8) + 0.11 * needles
    tint = np.array((0.88, 1.02, 1.10), np.float32)
    ice: Image = np.clip(grey[..., np.newaxis] * tint, 0, 1).astype(np.float32)
    return ice


def fog(image: Image, severity: int, generator: np.random.Generator) -> Image:
    density, decay = _FOG[severity - 1]
    brightest = image.max()
    veil = density * plasma(image.shape[0], decay, generator)[..., np.newaxis]
    veiled: Image = (image + veil) * (brightest / (brightest + density))
    return veiled


def brightness(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """The V of HSV raised, hue and saturation kept. Nothing random."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(_BRIGHTNESS[severity - 1]), 1)
    bright: Image = np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)
    return bright

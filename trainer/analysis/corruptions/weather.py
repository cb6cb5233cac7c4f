"""Weather of ImageNet-C: snow, frost, fog and brightness (arXiv:1903.12261, section 4.1)."""

import numpy as np
from scipy.ndimage import gaussian_filter

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
# mean colour, and standard deviation of the grey, of the five photos in the ImageNet-C code
_PANES = (
    ((0.31, 0.59, 0.65), 0.064),
    ((0.77, 0.79, 0.83), 0.078),
    ((0.78, 0.79, 0.83), 0.078),
    ((0.57, 0.63, 0.68), 0.103),
    ((0.39, 0.43, 0.48), 0.139),
)
_NEEDLE = (10, 6, 6)  # radius, sigma, and sigma of a patch, in pixels
_DIRECTIONS = 4
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

    Needles, in patches of one direction each, over cloudy noise. Colour and contrast are those of
    one of the photos in the ImageNet-C code, and what of the contrast is finer than 1, 2, 4 ... 32
    pixels is theirs on the average, within a tenth: smooth ice hides hardly anything.
    """
    radius, sigma, patch = (scaled(length, size) for length in _NEEDLE)
    margin = 2 * round(radius) + 1  # beyond the border `blur_along` repeats it
    shape = (size + 2 * margin,) * 2
    needles, chances = [], []
    for angle in generator.uniform(0, 180, _DIRECTIONS):
        noise = generator.standard_normal(shape, np.float32)
        needles.append(gaussian_filter(blur_along(noise, radius, sigma, angle), scaled(0.6, size)))
        chances.append(gaussian_filter(generator.standard_normal(shape, np.float32), patch))
    here = np.argmax(chances, axis=0)[np.newaxis]
    ice = np.take_along_axis(np.stack(needles), here, axis=0)[0, margin:-margin, margin:-margin]
    clouds = plasma(size, 1.4, generator)
    clouds = (clouds - clouds.mean()) / clouds.std()
    ice *= np.exp(0.35 * clouds)  # thick here, thin there
    ice = 0.55 * ice / ice.std() + 0.45 * clouds
    colour, contrast = _PANES[generator.integers(len(_PANES))]
    ice = contrast * (ice - ice.mean()) / ice.std()
    pane: Image = np.clip(colour + ice[..., np.newaxis], 0, 1).astype(np.float32)
    return pane


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

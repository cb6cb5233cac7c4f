"""Noise of ImageNet-C: Gaussian, shot and impulse (arXiv:1903.12261, section 4.1)."""

import numpy as np

from trainer.analysis.corruptions.lengths import Image

_DEVIATION = (0.08, 0.12, 0.18, 0.26, 0.38)
_PHOTONS = (60, 25, 12, 5, 3)  # of a white pixel
_AMOUNT = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of values replaced


def gaussian_noise(image: Image, severity: int, generator: np.random.Generator) -> Image:
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return image + np.float32(_DEVIATION[severity - 1]) * noise


def shot_noise(image: Image, severity: int, generator: np.random.Generator) -> Image:
    photons = _PHOTONS[severity - 1]
    return (generator.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Salt and pepper in equal parts, each colour value for itself."""
    draw = generator.random(image.shape, dtype=np.float32)
    amount = _AMOUNT[severity - 1]
    return np.where(draw < amount / 2, 0, np.where(draw < amount, 1, image)).astype(np.float32)

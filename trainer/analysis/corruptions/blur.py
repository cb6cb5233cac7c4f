"""Blurs of ImageNet-C: defocus, glass, motion and zoom (arXiv:1903.12261, section 4.1)."""

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from trainer.analysis.corruptions.lengths import Image, blur_along, scaled, zoom

_DISK = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, sigma of its soft edge; px
# sigma, largest move, in pixels; how often
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma, in pixels
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # end, step
_SUBPIXELS = 9


def defocus_blur(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Convolution with a disk, mirrored at the border. Nothing random."""
    radius, sigma = _DISK[severity - 1]
    kernel = _disk(scaled(radius, image.shape[0]), sigma)
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    blurred: Image = fftconvolve(padded, kernel[..., np.newaxis], mode="valid", axes=(0, 1))
    return blurred


def _disk(radius: float, sigma: float) -> Image:
    """float32 [k, k], sum 1: what each pixel has of a disk, its edge softened."""
    reach = math.ceil(radius) + 2
    line = (np.arange((2 * reach + 1) * _SUBPIXELS) + 0.5) / _SUBPIXELS - reach - 0.5
    inside = line[:, None] ** 2 + line[None, :] ** 2 <= radius**2
    side = 2 * reach + 1
    disk = inside.reshape(side, _SUBPIXELS, side, _SUBPIXELS).mean(axis=(1, 3))
    disk = gaussian_filter(disk, sigma, radius=2)
    kernel: Image = (disk / disk.sum()).astype(np.float32)
    return kernel


def glass_blur(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Soften, replace pixels by near ones, soften again."""
    sigma, move, rounds = _GLASS[severity - 1]
    size = image.shape[0]
    sigma = scaled(sigma, size)
    pixels = _soften(image, sigma).reshape(-1, 3)
    for _ in range(rounds):
        pixels = pixels[_sources(size, move, generator)]
    return _soften(pixels.reshape(image.shape), sigma)


def _sources(size: int, move: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """int64 [S * S]: from where each pixel comes after one round.

    The paper's code visits the pixels from the last to the first and means to swap each with one at
    most `move` away, but copies: a pixel whose source was visited before it takes what had come
    there. The same here without a loop over pixels, by following the sources to their ends.
    """
    moves = generator.integers(-move, move, (2, size, size)) * (size / 224)
    moves = np.floor(moves + generator.random((2, size, size))).astype(np.int64)
    rows, columns = np.indices((size, size))
    margin = max(1, math.ceil(move * size / 224))
    visited = np.zeros((size, size), bool)
    visited[margin + 1 : size - margin + 1, margin + 1 : size - margin + 1] = True
    to_row = np.clip(rows + moves[0], 0, size - 1)
    to_column = np.clip(columns + moves[1], 0, size - 1)
    own = np.arange(size * size)
    source = np.where(visited.ravel(), (to_row * size + to_column).ravel(), own)
    open_ends = visited.ravel() & (source > own) & visited.ravel()[source]
    while open_ends.any():
        onward = source[open_ends]
        source[open_ends], open_ends[open_ends] = source[onward], open_ends[onward]
    return source


def _soften(image: Image, sigma: float) -> Image:
    softened: Image = gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    return softened


def motion_blur(image: Image, severity: int, generator: np.random.Generator) -> Image:
    radius, sigma = (scaled(length, image.shape[0]) for length in _MOTION[severity - 1])
    return blur_along(image, radius, sigma, generator.uniform(-45, 45))


def zoom_blur(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """The mean of the picture and its enlargements. Nothing random."""
    end, step = _ZOOM[severity - 1]
    factors = np.arange(1, end, step)
    total = image.copy()
    for factor in factors:
        total += zoom(image, float(factor))
    return total / (len(factors) + 1)

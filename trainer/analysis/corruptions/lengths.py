"""What the corruptions share: sizes in pixels, a filter by shifts, and zoom."""

import math

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.floating]  # [S, S, 3] or [S, S], in [0, 1]

_PAPER_SIZE = 224  # pixels, of the pictures for which the constants were chosen


def scaled(length: float, size: int) -> float:
    """A radius given for 224-pixel pictures, in pixels of one of `size`.

    What exceeds half a pixel is scaled, so that a blur of a small picture does not vanish.
    """
    return 0.5 + (length - 0.5) * size / _PAPER_SIZE


def blur_along(image: Image, radius: float, sigma: float, angle: float) -> Image:
    """Smear in one direction with a half-Gaussian; lengths in pixels, angle in degrees.

    image: float32 [S, S] or [S, S, C]. Pixels beyond the border repeat it.
    """
    size = image.shape[0]
    width = min(2 * max(1, round(radius)) + 1, size)
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    direction = math.radians(angle)
    pad = [(width, width), (width, width)] + [(0, 0)] * (image.ndim - 2)
    padded = np.pad(image, pad, mode="edge")
    smeared = np.zeros_like(image)
    for step, weight in enumerate(weights.astype(np.float32)):
        down = width + math.ceil(step * math.sin(direction) - 0.5)
        right = width + math.ceil(step * math.cos(direction) - 0.5)
        smeared += weight * padded[down : down + size, right : right + size]
    return smeared


def zoom(image: Image, factor: float) -> Image:
    """The middle 1/factor of the picture enlarged to its whole size; [S, S] or [S, S, C].

    Linear interpolation between the outermost samples, as scipy.ndimage.zoom has it.
    """
    size = image.shape[0]
    source = math.ceil(size / factor)
    target = max(round(source * factor), size)
    at = np.arange(size) * (source - 1) / (target - 1)
    left = np.minimum(at.astype(np.int64), source - 2)
    share = (at - left).astype(np.float32)
    left += (size - source) // 2
    for axis in (0, 1):
        shares = np.expand_dims(share, tuple(i for i in range(image.ndim) if i != axis))
        low, high = np.take(image, left, axis), np.take(image, left + 1, axis)
        image = low + shares * (high - low)
    return image

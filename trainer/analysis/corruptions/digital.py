"""Digital corruptions of ImageNet-C: contrast, elastic, pixelate, JPEG (arXiv:1903.12261)."""

import io

import numpy as np
import PIL.Image
from scipy.ndimage import gaussian_filter, map_coordinates

from trainer.analysis.corruptions.lengths import Image

_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_ELASTIC = (12.5, 16.25, 21.25, 25.0, 30.0)  # amplification of the smoothed noise
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the resolution
_QUALITY = (25, 18, 15, 10, 7)


def contrast(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Towards the mean colour of the picture. Nothing random."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    flat: Image = mean + np.float32(_CONTRAST[severity - 1]) * (image - mean)
    return flat


def elastic(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Pixels displaced by a smooth random field (arXiv:1907.07484)."""
    size = image.shape[0]
    amplitude = _ELASTIC[severity - 1] * size / 224
    noise = generator.uniform(-0.005 * size, 0.005 * size, (2, size, size))
    down, right = (gaussian_filter(n, 0.01 * size, truncate=3) * amplitude for n in noise)
    rows, columns = np.indices((size, size))
    at = [rows + down, columns + right]
    planes = [map_coordinates(p, at, order=1, mode="reflect") for p in np.moveaxis(image, 2, 0)]
    return np.stack(planes, axis=2)


def pixelate(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """Resolution reduced, size kept. Nothing random."""
    size = image.shape[0]
    small = int(size * _PIXELATE[severity - 1])
    picture = _picture(image).resize((small, small), PIL.Image.Resampling.BOX)
    return _image(picture.resize((size, size), PIL.Image.Resampling.NEAREST))


def jpeg(image: Image, severity: int, generator: np.random.Generator) -> Image:
    """JPEG at a low quality. Nothing random."""
    stored = io.BytesIO()
    _picture(image).save(stored, "JPEG", quality=_QUALITY[severity - 1])
    with PIL.Image.open(stored) as picture:
        return _image(picture)


def _picture(image: Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _image(picture: PIL.Image.Image) -> Image:
    return np.asarray(picture, np.float32) / 255

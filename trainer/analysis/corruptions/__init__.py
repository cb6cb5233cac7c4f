"""The 15 common corruptions of ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).

Constants are those of the paper's code as kept by its successor (Michaelis et al. 2019,
arXiv:1907.07484), which are for pictures of 224 pixels. A length in pixels is scaled to the size of
the picture at hand, see `lengths.scaled`. Departures, each for a reason:
- frost is drawn here, as bright, as strong and as fine as in the photos of the paper's code, which
  may not be shipped;
- elastic follows arXiv:1907.07484: in the paper's code it does not grow with the severity;
- values are rounded to the nearest level, not cut off.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainer.analysis.corruptions import blur, digital, noise, weather
from trainer.analysis.corruptions.lengths import Image

SEVERITIES = (1, 2, 3, 4, 5)

# name -> (image float32 [S, S, 3] in [0, 1], severity, generator) -> the same, before clipping
_CORRUPTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg": digital.jpeg,
}
KINDS = tuple(_CORRUPTIONS)


def corrupt(
    picture: npt.NDArray[np.uint8], kind: str, severity: int, generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """One corrupted copy of `picture`, uint8 [S, S, 3], S >= 32; kind in KINDS, severity 1 to 5."""
    if kind not in _CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity!r}")
    size = picture.shape[0]
    if picture.dtype != np.uint8 or picture.shape != (size, size, 3) or size < 32:
        raise ValueError(
            f"picture must be uint8 [S, S, 3] with S >= 32, "
            f"got {picture.dtype} {list(picture.shape)}"
        )
    image = picture.astype(np.float32) / 255
    corrupted = _CORRUPTIONS[kind](image, severity, generator)
    return np.rint(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)

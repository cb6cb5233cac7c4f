"""Pictures [S, S, 3] of nothing, which no class is right for: drawn, made of photos, or given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.folders import walk
from serving.modelspec import Preprocessing
from trainer.analysis.corruptions.fractal import plasma
from trainer.errors import InvalidData
from trainer.pictures import Pixels, as_served
from trainer.screening import Usable, screen
from trainer.tree import Found

_DECAY = 1.6  # of each octave of the clouds


def noise(photo: Pixels, generator: np.random.Generator) -> Pixels:
    """Each value by itself."""
    return generator.integers(0, 256, photo.shape, dtype=np.uint8)


def stripes(photo: Pixels, generator: np.random.Generator) -> Pixels:
    """A wave between two colours, of 2 to 16 periods, in any direction."""
    side = len(photo)
    angle, phase = generator.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:side, :side] / side
    periods = generator.uniform(2, 16)
    wave = np.sin(2 * np.pi * periods * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    one, other = generator.uniform(0, 255, (2, 3))
    return _rounded(one + (other - one) * (wave[..., None] + 1) / 2)


def clouds(photo: Pixels, generator: np.random.Generator) -> Pixels:
    """A fractal in each channel."""
    side = len(photo)
    return _rounded(255 * np.stack([plasma(side, _DECAY, generator) for _ in range(3)], axis=2))


def texture(photo: Pixels, generator: np.random.Generator) -> Pixels:
    """The photo's own colours and spectrum with random phases: its texture, without its shapes."""
    noisy = np.fft.fft2(generator.standard_normal(photo.shape[:2]))
    phases = noisy / np.maximum(np.abs(noisy), 1e-12)
    spectrum = np.fft.fft2(photo.astype(np.float64), axes=(0, 1))
    phases[0, 0] = 1  # the mean colour stays
    return _rounded(np.fft.ifft2(spectrum * phases[..., None], axes=(0, 1)).real)


def _rounded(values: npt.NDArray[np.floating]) -> Pixels:
    whole: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return whole


GIVEN = "given"  # those of --strangers
STRANGERS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "noise": noise,
    "stripes": stripes,
    "clouds": clouds,
    "texture": texture,
}


def pictures_below(
    folder: str, spec: Preprocessing, *, limit: int | None, seed: int, workers: int
) -> npt.NDArray[np.uint8]:
    """uint8 [n, S, S, 3]: the pictures below `folder` as served; of at most `limit` files, which
    `seed` draws. What is no picture is passed over. Raises InvalidData where none is."""
    root = Path(folder).expanduser()
    if not folder or not root.is_dir():  # Path("") is the current folder
        raise InvalidData(f"no folder {folder!r}; give one with pictures of none of the classes")
    paths = sorted(walk(root, lambda _: None, lambda _: None))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(paths))[:limit])
    found = [
        Found(path=paths[i], file=paths[i].relative_to(root).as_posix(), label="", split=None)
        for i in drawn
    ]
    squares = as_served(spec, workers=workers)
    photos = [
        item.photo(label=-1)
        for item in screen(found, squares.decode, workers)
        if isinstance(item, Usable)
    ]
    if not photos:
        raise InvalidData(f"{folder} has no picture that can be used")
    return np.stack(squares.get(photos))

"""A cloudy height map by the diamond-square algorithm."""

import numpy as np

from trainer.analysis.corruptions.lengths import Image


def plasma(size: int, decay: float, generator: np.random.Generator) -> Image:
    """float32 [size, size] in [0, 1]; the roughness of each halving is 1/decay of the last one's.

    As in the fog of the ImageNet-C code: diamond-square that wraps around, on the next power of 2.
    """
    whole = 1 << (size - 1).bit_length()
    heights = np.zeros((whole, whole))
    step, wobble = whole, 100.0
    while step >= 2:
        half = step // 2

        def jitter(four: np.ndarray, wobble: float = wobble) -> np.ndarray:
            return four / 4 + wobble * generator.uniform(-wobble, wobble, four.shape)

        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = jitter(across + np.roll(across, -1, axis=1))
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = jitter(beside)
        below = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = jitter(below)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    cut: Image = (heights / heights.max())[:size, :size].astype(np.float32)
    return cut

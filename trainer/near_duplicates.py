"""Photos in two splits that show the same picture, though their bytes differ.

Resized, recompressed or cropped a little: a test on such photos is easier than it looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.pictures import Photo, Pixels

_SIDE = 16
_MAX_BITS = 16  # of 256; of two different photos about half differ
_MAX_LEVELS = 6.0  # mean difference, of 255; tells plain pictures apart, whose bits are all 0

Thumbnail = npt.NDArray[np.uint8]  # [16, 17], grey


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    one: Photo
    other: Photo


def thumbnail(picture: Pixels) -> Thumbnail:
    """Of a picture uint8 [h, w, 3], whatever its size and compression."""
    small = Image.fromarray(picture).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def near_duplicates(
    ones: Sequence[Photo],
    others: Sequence[Photo],
    thumbnails: dict[str, Thumbnail],
) -> list[NearDuplicate]:
    """Each of `ones` with the most alike of `others`, where that is near; thumbnails by digest.

    By a perceptual hash, the signs of horizontal differences (dHash, Krawetz 2013), and by grey.
    """
    of_ones, of_others = (
        np.stack([thumbnails[photo.digest] for photo in photos]) for photos in (ones, others)
    )
    hashes = _hashes(of_others)
    found = []
    for photo, small, hashed in zip(ones, of_ones, _hashes(of_ones), strict=True):
        bits = np.bitwise_count(hashes ^ hashed).sum(axis=1)
        nearest = int(bits.argmin())
        levels = np.abs(of_others[nearest].astype(float) - small).mean()
        if bits[nearest] <= _MAX_BITS and levels <= _MAX_LEVELS:
            found.append(NearDuplicate(one=photo, other=others[nearest]))
    return found


def _hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[n, 16, 17] -> [n, 32]."""
    rises = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return np.packbits(rises.reshape(len(thumbnails), -1), axis=1)

"""Photos in two splits that show the same picture, though their bytes differ.

Resized, recompressed, mirrored or cropped: a test on such photos is easier than it looks.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.pictures import Photo, Pixels

_SIDE = 32
_COARSE, _FINE = 8, 16  # sides at which pictures are looked for, and then compared
_SMALLEST = 0.75  # side of a crop, of the picture's
_CANDIDATE = 0.9  # correlation, coarse, from which a pair is looked at closely
_HOPE = 0.8  # correlation, fine, from which moving the crop may lead to
_ALIKE = 0.97  # correlation, fine, of one picture with the crop that fits it best
_MAX_LEVELS = 12.0  # and mean difference, of 255: the same drawing in other colours is another
_PLAIN = 1.0  # level of contrast below which there is only noise
_BLOCK = 512  # photos compared at once

Thumbnail = npt.NDArray[np.uint8]  # [32, 32], grey
Floats = npt.NDArray[np.float32]

# top, left and side, in parts of the picture: all of it, and crops of four sizes at nine places
_BOXES: Floats = np.array(
    [(0, 0, 1)]
    + [
        (top * (1 - side), left * (1 - side), side)
        for side in (0.95, 0.9, 0.85, 0.8)
        for top, left in itertools.product((0, 0.5, 1), repeat=2)
    ],
    np.float32,
)


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    one: Photo
    other: Photo


def thumbnail(picture: Pixels) -> Thumbnail:
    """Of a picture uint8 [h, w, 3], whatever its size and compression."""
    small = Image.fromarray(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def near_duplicates(
    ones: Sequence[Photo],
    others: Sequence[Photo],
    thumbnails: dict[str, Thumbnail],
) -> list[NearDuplicate]:
    """Each of `ones` with the most alike of `others`, where that is near; thumbnails by digest.

    A perceptual hash in real numbers: the grey levels of a few large pixels, of the whole picture
    and of crops of it, correlated with those of the other as it is and mirrored, both ways. Where
    that is high, the crop is moved and scaled until it fits best, and compared in more pixels.
    Thumbnails are of centre squares, so crops far from the middle of long photos are missed.
    """
    of_ones, of_others = (
        np.stack([thumbnails[photo.digest] for photo in photos]) for photos in (ones, others)
    )
    correlations, nearest = _most_correlated(of_ones, of_others)
    return [
        NearDuplicate(one=photo, other=others[at])
        for photo, small, correlation, at in zip(ones, of_ones, correlations, nearest, strict=True)
        if correlation >= _CANDIDATE and _is_near(small, of_others[at])
    ]


def _most_correlated(ones: Thumbnail, others: Thumbnail) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each of [n, 32, 32] the highest correlation with any of [m, 32, 32], and which it is."""
    best = np.full(len(ones), -1, np.float32)
    nearest = np.zeros(len(ones), np.int64)
    whole, crops = _both_ways(ones), _cut(ones, _BOXES, _COARSE)  # [2, n, 64], [37, n, 64]
    for start in range(0, len(others), _BLOCK):
        block = others[start : start + _BLOCK]
        block_whole = _both_ways(block).reshape(-1, _COARSE**2).T
        block_crops = _cut(block, _BOXES, _COARSE).reshape(-1, _COARSE**2).T
        for i in range(len(ones)):
            found = np.maximum(
                (crops[:, i] @ block_whole).reshape(-1, len(block)).max(axis=0),
                (whole[:, i] @ block_crops).reshape(-1, len(block)).max(axis=0),
            )
            at = int(found.argmax())
            if found[at] > best[i]:
                best[i], nearest[i] = found[at], start + at
    return best, nearest


def _is_near(one: Thumbnail, other: Thumbnail) -> bool:
    mirrored = other[:, ::-1]
    pairs = ((one, other), (other, one), (one, mirrored), (mirrored, one))
    return any(_fits(cropped, whole) for cropped, whole in pairs)


def _fits(cropped: Thumbnail, whole: Thumbnail) -> bool:
    """Whether some crop of one shows what the other does."""
    highest, box = _best_of(_BOXES, cropped, whole)
    step = 0.04
    while highest >= _HOPE and step > 0.004:
        correlation, beside = _best_of(_beside(box, step), cropped, whole)
        if correlation > highest:
            highest, box = correlation, beside
        else:
            step /= 2
    if highest < _ALIKE:
        return False
    cut, goal = (_levels(p[None], b[None], _FINE) for p, b in ((cropped, box), (whole, _BOXES[0])))
    return bool(np.abs(cut - goal).mean() <= _MAX_LEVELS)


def _best_of(boxes: Floats, cropped: Thumbnail, whole: Thumbnail) -> tuple[float, Floats]:
    """The crop, of boxes [b, 3], that correlates best with all of the other."""
    goal = _cut(whole[None], _BOXES[:1], _FINE)[0, 0]
    correlations = _cut(cropped[None], boxes, _FINE)[:, 0] @ goal
    at = int(correlations.argmax())
    return float(correlations[at]), boxes[at]


def _beside(box: Floats, step: float) -> Floats:
    """The box, and 26 beside it, larger or smaller: [27, 3]."""
    moves = step * np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.float32)
    side = np.clip(box[2] + moves[:, 2], _SMALLEST, 1)
    corner = box[:2] + moves[:, :2] + (box[2] - side[:, None]) / 2
    return np.column_stack([np.clip(corner, 0, 1 - side[:, None]), side])


def _both_ways(pictures: Thumbnail) -> Floats:
    """[n, 32, 32] -> [2, n, 64]: as they are, and mirrored."""
    return np.concatenate(
        [_cut(each, _BOXES[:1], _COARSE) for each in (pictures, pictures[:, :, ::-1])]
    )


def _cut(pictures: Thumbnail, boxes: Floats, side: int) -> Floats:
    """[n, 32, 32], [b, 3] -> [b, n, side * side] without their mean, of length 1; plain ones 0."""
    flat = _levels(pictures, boxes, side).reshape(len(boxes), len(pictures), -1)
    centred = flat - flat.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    centred[(length < _PLAIN * side)[..., 0]] = 0
    unit: Floats = centred / np.maximum(length, _PLAIN)
    return unit


def _levels(pictures: Thumbnail, boxes: Floats, side: int) -> Floats:
    """[n, 32, 32], [b, 3] -> [b, n, side, side]: mean levels of equal parts of each box."""
    down, across = (_averages(boxes[:, axis], boxes[:, 2], side) for axis in (0, 1))
    levels: Floats = (
        down[:, None] @ pictures.astype(np.float32) @ across.transpose(0, 2, 1)[:, None]
    )
    return levels


def _averages(starts: Floats, lengths: Floats, count: int) -> Floats:
    """[b], [b] -> [b, count, 32]: means over as many equal parts of a stretch of 32 pixels."""
    edges = (starts[:, None] + lengths[:, None] * np.arange(count + 1) / count) * _SIDE
    pixels = np.arange(_SIDE)
    upto = np.minimum(edges[:, 1:, None], pixels + 1)
    covered = np.clip(upto - np.maximum(edges[:, :-1, None], pixels), 0, None)
    means: Floats = (covered / covered.sum(axis=2, keepdims=True)).astype(np.float32)
    return means

"""Photos that show the same picture, though their bytes differ.

Resized, recompressed, mirrored or cropped, or one after another of a burst: a test on such photos
is easier than it looks.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from heapq import nlargest

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from trainer.blas import one_blas_thread
from trainer.console import Progress
from trainer.split import Ints

_SIDE = 32
# Of the photos themselves, not of what a net of some --size sees of them: the split rests on it.
_SEEN = Preprocessing(size=2 * _SIDE, interpolation="bilinear")
_COARSE, _FINE = 8, 16  # sides at which pictures are looked for, and then compared
_SMALLEST = 0.75  # side of a crop, of the picture's
_CANDIDATE = 0.9  # correlation, coarse, from which a pair is looked at closely
_HOPE = 0.8  # correlation, fine, from which moving the crop may lead to
_ALIKE = 0.96  # correlation, fine, of one picture with the crop that fits it best
_MAX_LEVELS = 12.0  # and mean difference, of 255: the same drawing in other colours is another
_PLAIN = 1.0  # level of contrast below which there is only noise
_NEAREST = 2  # earlier photos that one is looked at closely with, at most
# Photos compared at once: many, for small products of matrices take seven times as long.
_AT_ONCE, _ROWS, _BLOCK = 1024, 64, 512
# Photos from which on only whole pictures are looked for: crops of 50,000 take two cores three
# minutes, ten where many are alike, and the time grows with the square.
_MANY = 50_000

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


def thumbnail(data: bytes) -> Thumbnail:
    """Of a photo's bytes, the same for every training. Raises InvalidImage."""
    square = Image.fromarray(preprocess(data, _SEEN)).convert("L")
    return np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def groups_alike(pictures: Thumbnail, progress: Progress, workers: int = 1) -> Ints:
    """For each of [n, 32, 32] the first that shows the same picture: itself, where none does.

    A perceptual hash in real numbers: the grey levels of a few large pixels, of the whole picture
    and of crops of it, correlated with those of the other as it is and mirrored, both ways. Where
    that is high, the crop is moved and scaled until it fits best, and compared in more pixels.
    Thumbnails are of centre squares, so crops far from the middle of long photos are missed, and
    of more than 50,000 photos most crops.

    What is alike to the same one is in one group, so each is compared with the nearest before it.
    """
    first = np.arange(len(pictures))

    def first_of(i: int) -> int:
        while first[i] != i:
            i = int(first[i])
        return i

    starts = _evenly(range(0, len(pictures), _AT_ONCE))
    ended = threading.Event()
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        try:
            found = pool.map(partial(_candidates, pictures, ended), starts)
            for pairs in progress(found, "Comparing photos", len(starts)):
                for one, other in pairs:
                    low, high = sorted((first_of(one), first_of(other)))
                    if low != high and _is_near(pictures[one], pictures[other]):
                        first[high] = low
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
    return np.array([first_of(i) for i in range(len(pictures))], np.int64)


def _evenly(starts: Sequence[int]) -> list[int]:
    """First and last by turns: the later ones are compared with more, and the time left is told."""
    turns = zip(starts, reversed(starts), strict=True)
    return list(itertools.chain.from_iterable(turns))[: len(starts)]


def _candidates(pictures: Thumbnail, ended: threading.Event, start: int) -> list[tuple[int, int]]:
    """Each of _AT_ONCE pictures with the most correlated before it, the most alike first. That
    takes seconds, and so it looks no further once it is `ended`: nobody waits for it any more."""
    boxes = _BOXES if len(pictures) <= _MANY else _BOXES[:1]
    ones = pictures[start : start + _AT_ONCE]
    nearest: list[list[tuple[float, int]]] = [[] for _ in ones]
    whole, crops = _both_ways(ones), _cut(ones, boxes, _COARSE)  # [2, n, 64], [b, n, 64]
    for before in range(0, start + len(ones), _BLOCK):
        if ended.is_set():
            break
        block = pictures[before : min(before + _BLOCK, start + len(ones))]
        theirs = _both_ways(block), _cut(block, boxes, _COARSE)
        for row in range(0, len(ones), _ROWS):
            rows = slice(row, row + _ROWS)
            found = _highest(whole[:, rows], theirs[1])
            if len(boxes) > 1:  # whole pictures are compared with whole ones above
                np.maximum(found, _highest(crops[:, rows], theirs[0]), out=found)
            later = before + np.arange(len(block)) >= start + row + np.arange(len(found))[:, None]
            found[later] = 0
            for i in np.flatnonzero(found.max(axis=1) >= _CANDIDATE).tolist():
                at = np.argsort(found[i])[-_NEAREST:].tolist()
                nearest[row + i] += [(float(found[i, j]), before + j) for j in at]
    return [
        (one, other)
        for one, near in enumerate(nearest, start)
        for correlation, other in nlargest(_NEAREST, near)
        if correlation >= _CANDIDATE
    ]


def _highest(ones: Floats, others: Floats) -> Floats:
    """[a, n, 64], [b, m, 64] -> [n, m]: the highest correlation of any with any."""
    (a, n, width), (b, m, _) = ones.shape, others.shape
    products = ones.reshape(-1, width) @ others.reshape(-1, width).T
    highest: Floats = products.reshape(a, n, b * m).max(axis=0).reshape(n, b, m).max(axis=1)
    return highest


def _is_near(one: Thumbnail, other: Thumbnail) -> bool:
    mirrored = other[:, ::-1]
    pairs = ((one, other), (other, one), (one, mirrored), (mirrored, one))
    return any(_fits(cropped, whole) for cropped, whole in pairs)


def _fits(cropped: Thumbnail, whole: Thumbnail) -> bool:
    """Whether some crop of one shows what the other does."""
    highest, box = _best_of(_BOXES, cropped, whole)
    step = 0.04
    while highest >= _HOPE and step > 0.004:
        if highest >= _ALIKE and _levels_agree(cropped, box, whole):
            return True
        correlation, beside = _best_of(_beside(box, step), cropped, whole)
        if correlation > highest:
            highest, box = correlation, beside
        else:
            step /= 2
    return highest >= _ALIKE and _levels_agree(cropped, box, whole)


def _levels_agree(cropped: Thumbnail, box: Floats, whole: Thumbnail) -> bool:
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
    """[n, 32, 32], [b, 3] -> [b, n, side * side] without mean and slope, of length 1; plain ones 0.

    The slope is the light: of a texture there is little else in so few pixels, and others have it.
    """
    flat = _levels(pictures, boxes, side).reshape(len(boxes), len(pictures), -1)
    plane = _plane(side)
    centred = flat - flat @ plane.T @ plane
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    centred[(length < _PLAIN * side)[..., 0]] = 0
    unit: Floats = (centred / np.maximum(length, _PLAIN)).astype(np.float32, copy=False)
    return unit


@cache
def _plane(side: int) -> Floats:
    """[3, side * side], orthonormal: pictures that are even, or rise to the right or downwards."""
    ramp = np.arange(side) - (side - 1) / 2
    rows = np.stack([np.ones((side, side)), *np.meshgrid(ramp, ramp)]).reshape(3, -1)
    unit: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
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

"""The statistics of a robustness report, from what each attack left of each photo. Pure numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics import Bools, wilson_interval


def proportion(right: Bools) -> dict[str, Any]:
    """How many are right, with the 95 % Wilson interval of the share."""
    correct, photos = int(np.sum(right)), len(right)
    low, high = wilson_interval(correct, photos)
    return {
        "photos": photos,
        "correct": correct,
        "accuracy": correct / photos,
        "low": low,
        "high": high,
    }


def worst_case(rights: Sequence[Bools]) -> Bools:
    """[n]: whether a photo stays right under every attack; each item is [n], one attack's."""
    result: Bools = np.logical_and.reduce(list(rights))
    return result


def size_of(original: npt.NDArray[np.uint8], altered: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """(L-infinity, L2) of the difference of two pictures, in pixel units of [0, 1]."""
    difference = (altered.astype(np.float64) - original.astype(np.float64)) / 255
    return float(np.abs(difference).max()), float(np.sqrt(np.sum(difference**2)))

"""Stratified splits, and even samples: pure functions."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def hold_out(labels: Ints, fraction: float, generator: np.random.Generator, leave: int = 1) -> Ints:
    """Ascending indices of about `fraction` of each class: at least one, and `leave` are left.

    Every class in `labels` must occur at least 1 + `leave` times.
    """
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * fraction)), len(members) - leave)
        held.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(held))


def stratified_folds(labels: Ints, folds: int, generator: np.random.Generator) -> Ints:
    """The fold 0 ... folds-1 of each item; a class is spread evenly, and so is the remainder."""
    fold = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        fold[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return fold


def spread(length: int, count: int) -> list[int]:
    """`count` indices spread over range(length), or all of them."""
    return sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))

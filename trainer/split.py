"""Stratified splits, and even samples: pure functions."""

from collections import Counter

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


LEARNT = 2  # of `last` in `hold_out`


def units_of(labels: Ints, groups: Ints, parts: int) -> Ints:
    """For each item the number of the unit that it is dealt out with: those of its group and class.

    A group that makes up more than one of `parts` of a class is taken apart there: else one might
    have nothing of the class, or a fold would have to tell what no other one has seen.
    """
    _, units, sizes = np.unique(
        np.column_stack([labels, groups]), axis=0, return_inverse=True, return_counts=True
    )
    units = units.reshape(-1)  # NumPy 2.0 alone gives it another shape
    large = parts * sizes[units] > np.bincount(labels)[labels]
    return np.where(large, len(sizes) + np.arange(len(labels)), units)


def hold_out(
    labels: Ints,
    fraction: float,
    generator: np.random.Generator,
    leave: int = 1,
    units: Ints | None = None,
    last: Ints | None = None,
) -> Ints:
    """Ascending indices of about `fraction` of each class: at least one, and `leave` are left.

    Every class in `labels` must occur at least 1 + `leave` times. Of `units` [n], where they are
    given, a class must have as many: they are taken whole, which may be more or less than asked.
    last [n]: those with a higher number are taken later, LEARNT ones only where a class has no
    others; the same in all of a unit.
    """
    held = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count, left = max(1, round(len(members) * fraction)), leave
        of = members if units is None else units[members]
        if last is not None and (free := last[members] < LEARNT).any():
            left = max(0, leave - len(np.unique(of[~free])))
            members = members[free]
            members = members[np.argsort(last[members], kind="stable")]
            of = members if units is None else units[members]
        count = min(count, len(members) - left)
        held.append(members[np.isin(of, _whole(of.tolist(), count, left))])
    return np.sort(np.concatenate(held))


def _whole(units: list[int], count: int, leave: int) -> list[int]:
    """Units in the order in which they come, of `count` items in all at most; `leave` are left.

    Where that is less than half of it, the smallest other one as well.
    """
    sizes = Counter(units)  # in the order in which they come
    most = len(sizes) - leave
    taken: list[int] = []
    missing = count
    for unit, size in sizes.items():
        if size <= missing and len(taken) < most:
            taken.append(unit)
            missing -= size
    if 2 * missing > count and len(taken) < most:
        for unit in taken:
            del sizes[unit]
        taken.append(min(sizes, key=sizes.__getitem__))
    return taken


def stratified_folds(
    labels: Ints, folds: int, generator: np.random.Generator, units: Ints | None = None
) -> Ints:
    """The fold 0 ... folds-1 of each item; a class is spread evenly, and so is the remainder.

    units [n]: what stays in one fold; None for each item by itself.
    """
    fold = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        of = members if units is None else units[members]
        order = {unit: i for i, unit in enumerate(dict.fromkeys(of.tolist()))}
        fold[members] = (dealt + np.array([order[unit] for unit in of.tolist()])) % folds
        dealt += len(order)
    return fold


def spread(length: int, count: int) -> list[int]:
    """`count` indices spread over range(length), or all of them."""
    return sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))

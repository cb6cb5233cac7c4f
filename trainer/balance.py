"""Uneven classes: photos of rare ones are drawn more often, or weigh more.

The probe sees all photos at once, so that for it both are the same: weights in its loss.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainer.split import Ints

Order = Callable[[np.random.Generator], Ints]  # indices of the photos of one epoch


def make_order(targets: Ints, balance: str) -> Order:
    """All photos, shuffled; or, by "sampling", as many drawn so that classes come equally often."""
    weights = photo_weights(targets, balance)
    if weights is None or balance != "sampling":
        return lambda generator: generator.permutation(len(targets))
    chances = weights / weights.sum()
    return lambda generator: generator.choice(len(targets), len(targets), p=chances)


def batches_of(
    next_order: Order, count: int, seed: int, epoch: int
) -> list[tuple[list[int], list[int]]]:
    """`count` batches of an epoch: indices of photos, and `repeats_of` these in the whole epoch."""
    drawn = next_order(np.random.default_rng([seed, epoch]))
    parts = (np.array_split(each, count) for each in (drawn, repeats_of(drawn)))
    return [(batch.tolist(), repeats.tolist()) for batch, repeats in zip(*parts, strict=True)]


def repeats_of(drawn: Ints) -> Ints:
    """How often each item occurs before its place, so that a photo that is drawn again is not shown
    as the same pixels again."""
    order = np.argsort(drawn, kind="stable")
    places, gathered = np.arange(len(drawn)), drawn[order]
    begins = np.append(True, gathered[1:] != gathered[:-1])[: len(drawn)]
    repeats = np.empty(len(drawn), np.int64)
    repeats[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return repeats


def photo_weights(targets: Ints, balance: str) -> npt.NDArray[np.float64] | None:
    """Weights [n] with which each class counts alike; None, for equal ones, by "none"."""
    if balance == "none":
        return None
    return class_weights(targets, int(targets.max()) + 1)[targets]


def class_weights(targets: Ints, classes: int) -> npt.NDArray[np.float64]:
    """Inverse to how often a class occurs, with mean 1 over the photos; 0 if it does not occur."""
    counts = np.bincount(targets, minlength=classes)
    present = max(1, int(np.sum(counts > 0)))
    weights = np.zeros(classes)
    np.divide(len(targets) / present, counts, out=weights, where=counts > 0)
    return weights

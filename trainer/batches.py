"""How many batches an epoch has, and in how many parts one may be computed."""

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

from serving.errors import InvalidRequest

T = TypeVar("T")


def batch_count(photos: int, batch_size: int, processes: int) -> int:
    """Batches of an epoch, as even as can be.

    None is of a single photo, which batch norm can't learn from: it joins the one before. Raises
    InvalidRequest where one has too few photos for all processes.
    """
    count = min(math.ceil(photos / batch_size), max(1, photos // 2))
    fewest = photos // count
    if fewest < processes:
        raise InvalidRequest(
            f"a batch of {fewest} of the {photos} photos gives {processes} processes not one each; "
            "try a larger --batch-size, or fewer processes"
        )
    return count


def most_parts(photos: int, processes: int) -> int:
    """Of a batch: two photos in each at least, in every process, where there are so many."""
    return max(1, photos // processes // 2)


def parts_of(batch: Sequence[T], parts: int) -> list[Sequence[T]]:
    """In order, and as even as can be: as torch.tensor_split has them."""
    size, longer = divmod(len(batch), parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(starts)]

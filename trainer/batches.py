"""How many batches an epoch has, and in how many parts one may be computed."""

import math

from serving.errors import InvalidRequest


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

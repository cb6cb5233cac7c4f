"""What to do where the GPU's memory is too small for all items at once."""

from collections.abc import Callable
from typing import Any

import torch


def halved(run: Callable[[Any], torch.Tensor], items: Any) -> torch.Tensor:
    """`run(items)`, rows of a tensor for the items of a sequence or the rows of a tensor.

    Where memory overflows, each half is run by itself, down to one. Raises torch.OutOfMemoryError
    where that is too much.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError:
        if len(items) < 2:
            raise
    torch.cuda.empty_cache()
    middle = len(items) // 2
    return torch.cat([halved(run, items[:middle]), halved(run, items[middle:])])

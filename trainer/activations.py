"""The input of the stages that are trained, computed once by the frozen ones."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainer.memory import halved
from trainer.pictures import MEMORY_BYTES, Photo

_BATCH = 32


class Activations:
    """The frozen stages' output for (photo, view), each computed once while memory lasts.

    `images(photos, view)` gives float32 [n, 3, S, S]; it must be a function of its arguments.
    """

    def __init__(
        self,
        prefix: nn.Module,
        images: Callable[[Sequence[Photo], int], torch.Tensor],
        *,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._prefix = prefix
        self._images = images
        self._memory = 0 if isinstance(prefix, nn.Identity) else memory
        self._kept: dict[tuple[str, int], torch.Tensor] = {}

    def get(self, photos: Sequence[Photo], view: int) -> torch.Tensor:
        """In the order of `photos`, without gradient; on the CPU, or where they were computed."""
        missing = [p for p in photos if (p.digest, view) not in self._kept]
        new: dict[str, torch.Tensor] = {}
        if missing:
            with torch.no_grad():
                outputs = halved(lambda some: self._prefix(self._images(some, view)), missing)
            new = dict(zip((p.digest for p in missing), outputs, strict=True))
        for digest, output in new.items():
            size = output.numel() * output.element_size()
            if size <= self._memory:
                self._memory -= size
                self._kept[digest, view] = output.to("cpu", copy=True)
        rows = [new[p.digest] if p.digest in new else self._kept[p.digest, view] for p in photos]
        if len({row.device for row in rows}) > 1:
            rows = [row.cpu() for row in rows]
        stacked = torch.stack(rows)
        if stacked.dim() == 4:
            stacked = stacked.contiguous(memory_format=torch.channels_last)
        return stacked

"""The input of the stages that are trained, computed once by the frozen ones."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainer.memory import halved
from trainer.pictures import MEMORY_BYTES, Photo


class Activations:
    """The frozen stages' output for (photo, view), each computed once while memory lasts.

    `images(photos, views)` gives float32 [n, 3, S, S]; each must be a function of its photo and
    view.
    """

    def __init__(
        self,
        prefix: nn.Module,
        images: Callable[[Sequence[Photo], Sequence[int]], torch.Tensor],
        *,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._prefix = prefix
        self._images = images
        self._memory = 0 if isinstance(prefix, nn.Identity) else memory
        self._kept: dict[tuple[str, int], torch.Tensor] = {}

    def get(self, photos: Sequence[Photo], views: Sequence[int]) -> torch.Tensor:
        """In the order of `photos`, without gradient; on the CPU, or where they were computed."""
        keys = [(photo.digest, view) for photo, view in zip(photos, views, strict=True)]
        missing = {k: photo for k, photo in zip(keys, photos, strict=True) if k not in self._kept}
        new: dict[tuple[str, int], torch.Tensor] = {}
        if missing:
            with torch.no_grad():
                outputs = halved(self._through, list(missing.items()))
            new = dict(zip(missing, outputs, strict=True))
        for key, output in new.items():
            size = output.numel() * output.element_size()
            if size <= self._memory:
                self._memory -= size
                self._kept[key] = output.to("cpu", copy=True)
        rows = [new[key] if key in new else self._kept[key] for key in keys]
        if len({row.device for row in rows}) > 1:
            rows = [row.cpu() for row in rows]
        stacked = torch.stack(rows)
        if stacked.dim() == 4:
            stacked = stacked.contiguous(memory_format=torch.channels_last)
        return stacked

    def _through(self, some: Sequence[tuple[tuple[str, int], Photo]]) -> torch.Tensor:
        images = self._images([photo for _, photo in some], [view for (_, view), _ in some])
        outputs: torch.Tensor = self._prefix(images)
        return outputs

"""Random crops, mirror images and colours for training, each a function of seed, photo and view."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torchvision.transforms import v2

from trainer.pictures import Photo, Pictures

# What is done to a picture after a random crop and, half the time, its mirror image.
POLICIES: dict[str, Callable[[], list[nn.Module]]] = {
    "crop": lambda: [],
    "standard": lambda: [v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)],
    "trivial": lambda: [v2.TrivialAugmentWide()],  # Müller and Hutter 2021, arXiv:2103.10158
    "rand": lambda: [v2.RandAugment()],  # Cubuk et al. 2020, arXiv:1909.13719
}


class Augmentation:
    """Photos as training sees them. The same seed, photo and view give the same picture."""

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        seed: int,
        *,
        policy: str = "standard",
        erasing: float = 0.0,
    ) -> None:
        """`policy`: one of POLICIES; `erasing`: how likely a rectangle of a picture is blacked."""
        self._pictures = pictures
        self._seed = seed
        crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
        self._transform = v2.Compose(
            [crop, v2.RandomHorizontalFlip(), *POLICIES[policy](), v2.RandomErasing(erasing)]
        )

    def batch(self, photos: Sequence[Photo], views: Sequence[int]) -> torch.Tensor:
        """float32 [n, 3, S, S] in [0, 1], channels last in memory. views: of each photo."""
        seen = []
        with torch.random.fork_rng(devices=[]):  # v2 draws from the global generator alone
            pictures = self._pictures.get(photos)
            for photo, view, pixels in zip(photos, views, pictures, strict=True):
                key = f"{self._seed} {view} {photo.digest}".encode()
                seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
                torch.default_generator.manual_seed(seed)
                seen.append(self._transform(torch.tensor(pixels).permute(2, 0, 1)))
        images = torch.stack(seen).float().div_(255)
        return images.contiguous(memory_format=torch.channels_last)

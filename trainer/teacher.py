"""A published version that teaches a smaller net by what it says of the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate

from serving.errors import InvalidRequest, listed
from serving.repository import Repository
from trainer.activations import Activations
from trainer.augment import Augmentation
from trainer.backbones import WEIGHTS, load_version
from trainer.known_photos import Split, split_in
from trainer.pictures import Photo


@dataclass(frozen=True, kw_only=True)
class Teacher:
    name: str  # name/version
    net: nn.Module  # float32 [n, 3, S, S] in [0, 1] -> logits [n, K]
    size: int
    split: Split  # of the photos that it learnt from
    digest: str  # of its weights

    def on(self, augmentation: Augmentation, device: torch.device) -> Activations:
        """Its logits for (photo, view), each computed once, of the picture that the student sees.

        Resized to the side it was trained at: a teacher is to be right about that very crop (Beyer
        et al. 2022, arXiv:2106.05237, section 2).
        """
        side, net = self.size, self.net.to(device)

        def images(photos: Sequence[Photo], views: Sequence[int]) -> torch.Tensor:
            seen = augmentation.batch(photos, views).to(device)
            if seen.shape[-1] == side:
                return seen
            return interpolate(seen, (side, side), mode="bilinear", antialias=True)

        return Activations(net, images)


def load_teacher(repository: Repository, reference: str, labels: Sequence[str]) -> Teacher:
    """NAME or NAME/VERSION in `repository`. Raises NotFound, BrokenVersion, or InvalidRequest where
    it knows other labels.
    """
    name, number = repository.find(reference)
    net, manifest = load_version(repository, name, number)
    if manifest.labels != tuple(labels):
        differ = [repr(label) for label in sorted(set(labels) ^ set(manifest.labels))]
        raise InvalidRequest(
            f"the teacher {name}/{number} knows other labels than the photos have: "
            f"{listed(differ)} are in one alone; it can teach only its own"
        )
    net.requires_grad_(False)
    return Teacher(
        name=f"{name}/{number}",
        net=net,
        size=manifest.preprocessing.size,
        split=split_in(repository, manifest),
        digest=manifest.files[WEIGHTS].sha256,
    )

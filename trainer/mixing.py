"""Pictures mixed within a batch, and their labels with them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from serving.errors import InvalidRequest

NO_RECTANGLES = (
    "cutmix cuts rectangles, and behind the frozen stages there are only vectors; give a larger "
    "--thaw"
)

Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


def make_mix(
    mixup_alpha: float, cutmix_alpha: float, classes: int, *, channels_last: bool = False
) -> Mix:
    """(inputs [n, ...], labels [n], generator) -> inputs and targets, mixed or as they are.

    Where both are asked for, each batch is mixed by one of them at random. The inputs are those of
    the stages that are trained: behind frozen ones this is manifold mixup (Verma et al. 2019,
    arXiv:1806.05236). `channels_last`: they are [n, S, S, C], and not [n, C, S, S]. Where they are
    vectors, mixup is the only one; the mix raises InvalidRequest if it isn't asked for.
    """
    if not mixup_alpha and not cutmix_alpha:
        return lambda inputs, labels, generator: (inputs, labels)

    def mix(
        inputs: Tensor, labels: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        other = torch.from_numpy(generator.permutation(len(inputs))).to(inputs.device)
        targets = one_hot(labels, classes).float()
        cuttable = cutmix_alpha > 0 and inputs.dim() == 4  # vectors have no rectangles
        if cuttable and (not mixup_alpha or generator.random() < 0.5):
            pictures = inputs.movedim(-1, 1) if channels_last else inputs
            mixed, share = cutmix(pictures, other, cutmix_alpha, generator)
            mixed = mixed.movedim(1, -1) if channels_last else mixed
        elif mixup_alpha:
            mixed, share = mixup(inputs, other, mixup_alpha, generator)
        else:
            raise InvalidRequest(f"{NO_RECTANGLES}, or --mixup")
        return mixed, share * targets + (1 - share) * targets[other]

    return mix


def mixup(
    inputs: Tensor, other: Tensor, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """share * x + (1 - share) * x[other] (Zhang et al. 2018, arXiv:1710.09412); share ~ Beta."""
    share = float(generator.beta(alpha, alpha))
    return share * inputs + (1 - share) * inputs[other], share


def cutmix(
    inputs: Tensor, other: Tensor, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """A rectangle of x[other] in x (Yun et al. 2019, arXiv:1905.04899); share: what x keeps.

    inputs [n, C, S, S].
    """
    height, width = inputs.shape[-2:]
    side = np.sqrt(1 - generator.beta(alpha, alpha))
    y, x = generator.uniform(0, (height, width))
    top, bottom = (int(np.clip(y + d * side * height / 2, 0, height)) for d in (-1, 1))
    left, right = (int(np.clip(x + d * side * width / 2, 0, width)) for d in (-1, 1))
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs[other, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)

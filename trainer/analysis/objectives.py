"""What an ideal image is to have more or less of; each is one number an image."""

import torch
from torch import Tensor
from torch.nn import functional


def class_logit(logits: Tensor, classes: Tensor) -> Tensor:
    """[n]: the logit of the image's own class; logits [n, K], classes int64 [n].

    Unlike the probability it can't be raised by making the other classes less likely (Olah et al.
    2017, "Feature Visualization", section "Optimization objectives").
    """
    return logits.gather(1, classes[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """[n], nats."""
    return functional.cross_entropy(logits, classes, reduction="none")


def total_variation(images: Tensor) -> Tensor:
    """[n]: the sum over channels and pixels of |difference to the right| + |difference below|.

    images: [n, C, H, W]. Anisotropic, as tf.image.total_variation; the isotropic one of Rudin,
    Osher & Fatemi 1992 has the root of the sum of squares.
    """
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().sum(dim=(1, 2, 3))
    below = (images[..., 1:, :] - images[..., :-1, :]).abs().sum(dim=(1, 2, 3))
    total: Tensor = torch.add(right, below)
    return total

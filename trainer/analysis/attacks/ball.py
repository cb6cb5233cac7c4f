"""The set of allowed perturbations: an L-infinity or L2 ball around each image, cut to [0, 1]."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class Ball:
    """|perturbation| <= epsilon. L2 is over all 3 x S x S values of an image."""

    norm: Norm
    epsilon: float | Tensor  # pixel units of [0, 1]; a tensor [n] gives each image its own

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        if isinstance(self.epsilon, Tensor):
            return
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")
        if self.norm == "linf" and self.epsilon > 1:
            raise ValueError(
                f"an L-infinity epsilon is in pixel units, at most 1; got {self.epsilon:g} "
                f"(did you mean {self.epsilon:g}/255?)"
            )

    def __getitem__(self, rows: Tensor) -> "Ball":
        if isinstance(self.epsilon, Tensor):
            return Ball(norm=self.norm, epsilon=self.epsilon[rows])
        return self

    def column(self, like: Tensor) -> Tensor:
        """epsilon as a tensor that broadcasts over images like `like`: [n, 1, 1, 1] or a scalar."""
        if isinstance(self.epsilon, Tensor):
            return self.epsilon.view(-1, 1, 1, 1)
        return like.new_tensor(self.epsilon)


# Every picture that an attack may reach: for attacks that know no ball.
WHOLE_CUBE = Ball(norm="linf", epsilon=1.0)


def project(images: Tensor, originals: Tensor, ball: Ball) -> Tensor:
    """The nearest images within the ball, then cut to [0, 1] (which never leaves the ball)."""
    epsilon = ball.column(images)
    if ball.norm == "linf":
        images = torch.minimum(torch.maximum(images, originals - epsilon), originals + epsilon)
    else:
        delta = images - originals
        images = originals + delta * (epsilon / l2_norm(delta)).clamp_max(1.0)
    return images.clamp(0, 1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The perturbation of unit norm along which the objective rises fastest."""
    return gradient.sign() if norm == "linf" else unit_l2(gradient)


def random_start(originals: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """A random point of the ball: uniform in the L-infinity ball; on the L2 sphere, cut to [0, 1].

    The L2 radius is epsilon, as in AutoAttack (arXiv:2003.01690): in so many dimensions nearly all
    of a ball lies at its surface.
    """
    if ball.norm == "linf":
        noise = 2 * uniform(originals.shape, generator, originals.device) - 1
    else:
        noise = torch.randn(originals.shape, generator=generator, device=generator.device)
        noise = unit_l2(noise.to(originals.device))
    return (originals + ball.column(originals) * noise).clamp(0, 1)


def uniform(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives."""
    numbers: Tensor = torch.rand(shape, generator=generator, device=generator.device)
    return numbers.to(device)


def size_of(perturbation: Tensor, norm: Norm) -> Tensor:
    """[n]: the norm over all values of each image, pixel units."""
    order = math.inf if norm == "linf" else 2
    size: Tensor = torch.linalg.vector_norm(perturbation, ord=order, dim=(1, 2, 3))
    return size


def l2_norm(perturbation: Tensor) -> Tensor:
    """[n, 1, 1, 1], never zero, so that one may divide by it."""
    norm: Tensor = torch.linalg.vector_norm(perturbation, dim=(1, 2, 3), keepdim=True)
    return norm.clamp_min(1e-12)


def unit_l2(perturbation: Tensor) -> Tensor:
    """Scaled to L2 norm 1 image by image; zero stays zero."""
    return perturbation / l2_norm(perturbation)

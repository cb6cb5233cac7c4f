"""Small random motions of a picture, so that what is drawn does not hang on exact pixels
(Olah et al. 2017, "Feature Visualization", section "Transformation robustness")."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Each image draws its own jitter, rotation and scale, uniformly within these."""

    jitter: float = 0.06  # of the side, either way in both directions
    rotation_degrees: float = 10.0  # either way
    scale: tuple[float, float] = (0.9, 1.1)


def moved(images: Tensor, motion: Motion, generator: torch.Generator) -> Tensor:
    """Batched and differentiable: [n, 3, S, S] to the same, bilinear, mirrored at the border."""
    draw = torch.rand(4, len(images), generator=generator, device=generator.device)
    draw = draw.to(images.device, images.dtype)
    angle = math.radians(motion.rotation_degrees) * (2 * draw[0] - 1)
    smallest, largest = motion.scale
    scale = smallest + (largest - smallest) * draw[1]
    shift = 2 * motion.jitter * (2 * draw[2:] - 1)  # the picture spans -1 to 1
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

"""FMN: the smallest perturbation that fools the model (Pintor et al. 2021, arXiv:2102.12827).

Chosen over DeepFool: it needs one gradient a step however many classes there are, works alike for
both norms, crosses the boundary many times instead of stopping at the first crossing, and so finds
smaller perturbations.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, Norm, project, size_of, unit_l2
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.differentiable import input_gradient

_STEP_SIZE = {"l2": 1.0, "linf": 10.0}  # alpha_0, L2 length of a step (section 3)
_LAST_STEP = 0.01  # of alpha_0
_GAMMA, _LAST_GAMMA = 0.05, 0.001  # relative change of epsilon in a step


@dataclass(frozen=True, kw_only=True)
class NearestBoundary:
    """The smallest perturbations found, in float: not on the lattice, and undone by rounding."""

    perturbations: Tensor  # float32 [n, 3, S, S]; zero where none was found
    distances: Tensor  # float32 [n], pixel units; infinite where none was found


def fmn(model: nn.Module, images: Tensor, goal: Goal, norm: Norm, *, steps: int) -> NearestBoundary:
    """Fast minimum-norm attack (arXiv:2102.12827, algorithm 1), from the image itself.

    Deterministic. Use `smallest.smallest_on_lattice` for perturbations that survive 8 bits.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    dual = 1 if norm == "linf" else 2
    delta, best = torch.zeros_like(images), torch.zeros_like(images)
    best_norm = images.new_full((len(images),), math.inf)
    epsilon = best_norm.clone()
    for step in range(steps):
        anneal = (1 + math.cos(math.pi * step / steps)) / 2
        gamma = _LAST_GAMMA + (_GAMMA - _LAST_GAMMA) * anneal
        stride = _STEP_SIZE[norm] * (_LAST_STEP + (1 - _LAST_STEP) * anneal)
        _, margin, gradient = input_gradient(model, images + delta, goal.margin)
        size = size_of(delta, norm)
        fools = margin > 0
        closer = fools & (size < best_norm)
        best_norm = torch.where(closer, size, best_norm)
        best = torch.where(closer.view(-1, 1, 1, 1), delta, best)
        slope = torch.linalg.vector_norm(gradient, ord=dual, dim=(1, 2, 3)).clamp_min(1e-12)
        to_boundary = size + margin.abs() / slope
        grown = epsilon * (1 + gamma)
        # Never shrunk before the first crossing, unlike the paper: where pixels at 0 or 1 can't
        # follow the gradient, the estimate falls short again and again, and none is ever found.
        sought = torch.where(epsilon.isinf(), to_boundary, torch.maximum(to_boundary, grown))
        outside = torch.where(best_norm.isinf(), sought, grown)
        inside = torch.minimum(epsilon * (1 - gamma), best_norm)
        epsilon = torch.where(fools, inside, outside)
        ball = Ball(norm=norm, epsilon=epsilon)
        delta = project(images + delta + stride * unit_l2(gradient), images, ball) - images
    return NearestBoundary(perturbations=best, distances=best_norm)

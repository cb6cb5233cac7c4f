"""The 8-bit lattice k/255 on which every picture that is saved or served must lie.

An attack that stops just past a decision boundary is undone by rounding, so rounding is done inside
the ball of allowed perturbations and what it undoes is repaired by steps on the lattice itself.
"""

import math

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, project, unit_l2
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.differentiable import input_gradient

_BISECTIONS = 14


def to_uint8(images: Tensor) -> Tensor:
    """Nearest pictures: float [n, 3, S, S] in [0, 1] to uint8 [n, S, S, 3]."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def from_uint8(pictures: Tensor) -> Tensor:
    """uint8 [n, S, S, 3] to float32 [n, 3, S, S] in [0, 1], channels last in memory."""
    return (pictures.to(torch.float32) / 255).permute(0, 3, 1, 2)


def round_in_ball(images: Tensor, originals: Tensor, ball: Ball) -> Tensor:
    """Pictures on the lattice near `images` [n, 3, S, S], within `ball` of `originals`.

    originals: on the lattice. L-infinity: nearest level, within floor(255 epsilon) levels. L2: the
    direction of the perturbation is kept and the whole budget used, since to the nearest level
    a small perturbation rounds to nothing: the largest scale whose rounded perturbation still
    lies in the ball, by bisection.
    """
    base = (originals * 255).round()
    wanted = images * 255 - base
    if ball.norm == "linf":
        reach = (ball.column(images) * 255 + 1e-4).floor()
        levels = torch.minimum(torch.maximum(wanted.round(), -reach), reach)
    else:
        levels = _largest_rounding(wanted, ball.column(images) * 255)
    return (base + levels).clamp(0, 255) / 255


def _largest_rounding(wanted: Tensor, radius: Tensor) -> Tensor:
    """round(scale * wanted) of the largest scale with L2 norm <= radius, image by image."""
    peak = wanted.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    low = torch.log(0.49 / peak)  # everything rounds to zero
    high = low + math.log(2000.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        norm = torch.linalg.vector_norm(
            (wanted * middle.exp()).round_(), dim=(1, 2, 3), keepdim=True
        )
        inside = norm <= radius + 1e-3
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return (wanted * low.exp()).round_()


def repair(
    model: nn.Module, images: Tensor, originals: Tensor, goal: Goal, ball: Ball, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Climb the margin by steps of whole levels until the pictures reach the goal.

    images, originals: on the lattice, [n, 3, S, S]. A step moves the pixels with the largest
    gradient; one that does not raise the margin is taken back and the next moves half as many.
    Returns (pictures on the lattice within the ball, whether each reaches the goal); an image that
    reaches it is not touched any more.
    """
    best, best_gradient = images.clone(), torch.zeros_like(images)
    best_margin = images.new_full((len(images),), -math.inf)
    share = images.new_ones(len(images))
    rows, trial = torch.arange(len(images), device=images.device), images
    for _ in range(steps + 1):
        _, margin, gradient = input_gradient(model, trial, goal[rows].margin)
        better = margin > best_margin[rows]
        risen = rows[better]
        best[risen], best_gradient[risen] = trial[better], gradient[better]
        best_margin[risen] = margin[better]
        share[rows[~better]] /= 2
        rows = rows[best_margin[rows] <= 0]
        if len(rows) == 0:
            break
        trial = _lattice_step(
            best[rows], originals[rows], best_gradient[rows], ball[rows], share[rows]
        )
    return best, best_margin > 0


def _lattice_step(
    pictures: Tensor, originals: Tensor, gradient: Tensor, ball: Ball, share: Tensor
) -> Tensor:
    """One step up the gradient that ends on the lattice and in the ball; share [n] in (0, 1]."""
    if ball.norm == "l2":
        stride = share.view(-1, 1, 1, 1) * ball.column(pictures)
        moved = project(pictures + stride * unit_l2(gradient), originals, ball)
        return round_in_ball(moved, originals, ball)
    moved = round_in_ball(pictures + gradient.sign() / 255, originals, ball)
    size = gradient.abs() * (moved != pictures)  # pixels at the edge of the ball can't move
    for row, part in enumerate(share.tolist()):
        movable = int((size[row] > 0).sum())
        kept = max(1, int(part * movable))
        if kept < movable:
            threshold = size[row].flatten().kthvalue(size[row].numel() - kept + 1).values
            moved[row] = torch.where(size[row] >= threshold, moved[row], pictures[row])
    return moved

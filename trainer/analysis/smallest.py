"""The smallest perturbation of each image that still fools the model as an 8-bit picture."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, Norm, size_of
from trainer.analysis.attacks.fmn import NearestBoundary, fmn
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import pgd
from trainer.analysis.differentiable import logits_of
from trainer.analysis.lattice import repair, round_in_ball

# Of the distance found in float. The nearer the boundary, the fewer pixels can move by a whole
# level, and the larger the factor: a distance of 4 levels needed more than 10 on a real photo.
_L2_GROWTH = (1.0, 1.2, 1.6, 2.4, 4.0, 7.0, 12.0, 20.0)
_LINF_LEVELS = (0, 1, 2, 4)  # above the distance found in float, rounded up
_BISECTIONS = 6
_REPAIR_STEPS = 4
_REFINEMENT_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """What survives 8 bits, beside what the attack claimed in float."""

    adversarial: Tensor  # float32 [n, 3, S, S], on the lattice; the original where none was found
    distances: Tensor  # float32 [n], pixel units, of `adversarial`; infinite where none was found
    float_distances: Tensor  # float32 [n], pixel units, before rounding
    survived_rounding: Tensor  # bool [n]: rounding the float result to the nearest level fools too

    @property
    def success(self) -> Tensor:
        return self.distances.isfinite()


def smallest_on_lattice(
    model: nn.Module, images: Tensor, goal: Goal, norm: Norm, *, steps: int
) -> Smallest:
    """FMN (arXiv:2102.12827), then pushed past the boundary until the picture fools as stored.

    L-infinity: then fewer levels by PGD, so the distance is a whole number of levels / 255. L2:
    then bisected towards the boundary. steps: of FMN and of PGD. Deterministic.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    found = fmn(model, images, goal, norm, steps=steps)
    adversarial, fools = _push(model, images, goal, norm, found)
    if norm == "linf":
        adversarial = _fewer_levels(model, images, goal, adversarial, fools, steps)
    else:
        adversarial = _bisect(model, images, goal, adversarial, fools)
    distances = size_of(adversarial - images, norm)
    nearest = ((images + found.perturbations) * 255).round() / 255
    return Smallest(
        adversarial=adversarial,
        distances=torch.where(fools, distances, math.inf),
        float_distances=found.distances,
        survived_rounding=_reached(model, nearest, goal) & found.distances.isfinite(),
    )


def _push(
    model: nn.Module, images: Tensor, goal: Goal, norm: Norm, found: NearestBoundary
) -> tuple[Tensor, Tensor]:
    """Enlarge the float perturbation by little, round, repair, until each picture fools."""
    adversarial = images.clone()
    fools = _reached(model, images, goal)
    for growth in _L2_GROWTH if norm == "l2" else _LINF_LEVELS:
        rows = (found.distances.isfinite() & ~fools).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        distances, originals = found.distances[rows], images[rows]
        if norm == "l2":
            epsilon = distances * growth
        else:
            epsilon = ((distances * 255 - 1e-4).ceil().clamp_min(1) + growth).clamp_max(255) / 255
        ball = Ball(norm=norm, epsilon=epsilon)
        scale = (epsilon / distances.clamp_min(1e-12)).view(-1, 1, 1, 1)
        rounded = round_in_ball(originals + scale * found.perturbations[rows], originals, ball)
        rounded, reached = repair(model, rounded, originals, goal[rows], ball, steps=_REPAIR_STEPS)
        adversarial[rows[reached]] = rounded[reached]
        fools[rows[reached]] = True
    return adversarial, fools


def _fewer_levels(
    model: nn.Module, images: Tensor, goal: Goal, adversarial: Tensor, fools: Tensor, steps: int
) -> Tensor:
    """One level less while PGD manages it; where it did once, bisected from there."""
    generator = torch.Generator().manual_seed(0)  # one run without restarts draws nothing
    high = (size_of(adversarial - images, "linf") * 255).round()  # levels that suffice
    low = torch.zeros_like(high)  # levels that do not
    trial = high - 1  # the first guess of FMN is mostly right
    while len(rows := (fools & (high - low > 1)).nonzero().squeeze(1)):
        ball = Ball(norm="linf", epsilon=trial[rows] / 255)
        result = pgd(model, images[rows], goal[rows], ball, steps=steps, generator=generator)
        better = rows[result.success]
        adversarial[better] = result.adversarial[result.success]
        high[better] = trial[better]
        low[rows[~result.success]] = trial[rows[~result.success]]
        trial = ((low + high) / 2).floor()
    return adversarial


def _bisect(
    model: nn.Module, images: Tensor, goal: Goal, adversarial: Tensor, fools: Tensor
) -> Tensor:
    """Shorter roundings of the same direction, repaired by little, as long as they fool."""
    rows = (fools & (adversarial != images).flatten(1).any(dim=1)).nonzero().squeeze(1)
    if len(rows) == 0:
        return adversarial
    originals, direction = images[rows], adversarial[rows] - images[rows]
    high = size_of(direction, "l2")
    low = high / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ball = Ball(norm="l2", epsilon=middle)
        trial = round_in_ball(originals + direction, originals, ball)
        trial, reached = repair(model, trial, originals, goal[rows], ball, steps=_REFINEMENT_STEPS)
        adversarial[rows[reached]] = trial[reached]
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return adversarial


def _reached(model: nn.Module, images: Tensor, goal: Goal) -> Tensor:
    return goal.reached(logits_of(model, images))

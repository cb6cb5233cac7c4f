"""Several attacks as one opponent: an image is robust if it withstands them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.apgd import apgd_cross_entropy, apgd_targeted
from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import fgsm, pgd
from trainer.analysis.attacks.pursuit import AttackResult
from trainer.analysis.attacks.square import square

Attack = Callable[[nn.Module, Tensor, Goal], AttackResult]


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    adversarial: Tensor  # float32 [n, 3, S, S], on the lattice
    success: Tensor  # bool [n]: some attack succeeded
    tried: dict[str, Tensor]  # attack -> bool [n]; an image that fell is not tried again
    fooled: dict[str, Tensor]  # attack -> bool [n], within tried
    evaluations: Tensor  # int64 [n], over all attacks


def worst_case(
    model: nn.Module, images: Tensor, goal: Goal, attacks: Mapping[str, Attack]
) -> WorstCase:
    """The attacks in order, each on the images that withstood those before it."""
    n = len(images)
    adversarial = images.clone()
    success = torch.zeros(n, dtype=torch.bool, device=images.device)
    evaluations = torch.zeros(n, dtype=torch.int64, device=images.device)
    tried: dict[str, Tensor] = {}
    fooled: dict[str, Tensor] = {}
    for name, attack in attacks.items():
        tried[name], fooled[name] = ~success, torch.zeros_like(success)
        rows = tried[name].nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        result = attack(model, images[rows], goal[rows])
        adversarial[rows] = result.adversarial
        fooled[name][rows] = result.success
        evaluations[rows] += result.evaluations
        success = success | fooled[name]
    return WorstCase(
        adversarial=adversarial,
        success=success,
        tried=tried,
        fooled=fooled,
        evaluations=evaluations,
    )


def standard_attacks(
    ball: Ball, *, steps: int, queries: int, generator: torch.Generator
) -> dict[str, Attack]:
    """From the cheapest to the dearest, as AutoAttack (arXiv:2003.01690) with FGSM and PGD before.

    steps: of PGD, APGD-CE and each target of APGD-DLR; queries: of Square.
    """
    return {
        "fgsm": lambda model, images, goal: fgsm(model, images, goal, ball),
        "pgd": lambda model, images, goal: pgd(
            model, images, goal, ball, steps=steps, generator=generator
        ),
        "apgd-ce": lambda model, images, goal: apgd_cross_entropy(
            model, images, goal, ball, steps=steps, generator=generator
        ),
        "apgd-dlr": lambda model, images, goal: apgd_targeted(
            model, images, goal, ball, steps=steps, generator=generator
        ),
        "square": lambda model, images, goal: square(
            model, images, goal, ball, queries=queries, generator=generator
        ),
    }

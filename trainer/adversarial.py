"""Adversarial training: each batch is attacked before the net learns from it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.analysis.attacks.ball import Ball, project, random_start, steepest
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import pgd
from trainer.analysis.differentiable import logits_of
from trainer.defence import Defence
from trainer.memory import halved

_FULL = 0.5  # share of the training at which epsilon is whole
_CHECK_STEPS = 10  # of the attack that measures, or twice training's: by its own a net looks better


def epsilon_at(progress: float, target: float) -> float:
    """The size of the adversary's ball when a share `progress` of the training is done.

    Linearly from nothing up to `target`, then `target`: a net that is attacked with full force
    before it has adapted to the task may never do so (Ngnawé et al. 2025, arXiv:2509.23325). The
    stretch at 0 that they begin with is left out, for our head is fitted when this begins.
    """
    return target * min(1.0, progress / _FULL)


class Adversary:
    """The worst pictures that it finds in a ball around those given, and which withstand it."""

    def __init__(self, defence: Defence, seed: int) -> None:
        self._defence = defence
        self.generator = torch.Generator().manual_seed(seed)

    def attack(
        self, model: nn.Module, images: Tensor, labels: Tensor, progress: float, parts: int = 1
    ) -> Tensor:
        """PGD from a random start (Madry et al. 2018, arXiv:1706.06083, section 2.1).

        A single step goes 1.25 times as far as the ball is wide (fast adversarial training, Wong
        et al. 2020, arXiv:2001.03994, section 4.2). images: float32 [n, 3, S, S] in [0, 1]; labels:
        int64 [n]. The model is attacked in evaluation mode, so that its batch-norm statistics are
        those of what it learns from alone, and is left in that mode. `parts`: in which the batch
        is attacked, and in more where memory is too small; its photos do not depend on each other.
        """
        epsilon = epsilon_at(progress, self._defence.epsilon)
        if epsilon == 0:
            return images
        model.eval()
        ball = Ball(norm="linf", epsilon=epsilon)
        steps = self._defence.steps
        step_size = epsilon * (1.25 if steps == 1 else 2.5 / steps)
        starts = random_start(images, ball, self.generator)

        def climb(rows: Tensor) -> Tensor:
            attacked, originals, goals = starts[rows], images[rows], labels[rows]
            for _ in range(steps):
                leaf = attacked.requires_grad_(True)
                loss = cross_entropy(model(leaf), goals, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, leaf)
                with torch.no_grad():
                    raised = leaf + step_size * steepest(gradient, "linf")
                    attacked = project(raised, originals, ball)
            return attacked.detach()

        pieces = torch.arange(len(images), device=images.device).tensor_split(parts)
        return torch.cat([halved(climb, rows) for rows in pieces])

    def withstanding(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Which 8-bit pictures the net has right, and PGD from the pictures themselves does not
        turn, at the full epsilon and with more steps than training's: bool [n].

        As `analyze` counts: by the first label before and after. Equal logits are no success of
        the attack, and where the first of them is another label, none of the net's.
        """
        model.eval()
        ball = Ball(norm="linf", epsilon=self._defence.epsilon)
        steps = max(_CHECK_STEPS, 2 * self._defence.steps)
        goal = Goal(labels=labels)
        result = pgd(model, images, goal, ball, steps=steps, generator=self.generator)
        clean, attacked = (logits_of(model, p).argmax(dim=1) for p in (images, result.adversarial))
        return (clean == labels) & (attacked == labels)

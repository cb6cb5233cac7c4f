"""Attacks that follow the gradient of the cross-entropy: FGSM, PGD, and plain descent."""

import math

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import WHOLE_CUBE, Ball, project, random_start, steepest
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.pursuit import AttackResult, Pursuit
from trainer.analysis.differentiable import input_gradient, logits_of
from trainer.analysis.lattice import round_in_ball


def fgsm(model: nn.Module, images: Tensor, goal: Goal, ball: Ball) -> AttackResult:
    """One step to the edge of the ball (Goodfellow et al. 2015, arXiv:1412.6572, section 4).

    L2: the fast gradient method, the same with the normalised gradient. What it misses stays
    missed: success is judged on the one step rounded, without repair.
    """
    pursuit = Pursuit(model, images, goal, ball)
    logits, _, gradient = input_gradient(model, pursuit.originals, goal.cross_entropy)
    pursuit.count()
    stands = pursuit.settle(pursuit.originals, goal.reached(logits))
    if bool(stands.any()):
        step = steepest(gradient[stands], ball.norm) * pursuit.ball.column(images)
        iterates = project(pursuit.originals + step, pursuit.originals, pursuit.ball)
        pursuit.settle(iterates, torch.ones_like(pursuit.rows, dtype=torch.bool))
    return pursuit.result()


def pgd(
    model: nn.Module,
    images: Tensor,
    goal: Goal,
    ball: Ball,
    *,
    steps: int,
    generator: torch.Generator,
    restarts: int = 1,
) -> AttackResult:
    """Projected gradient descent (Madry et al. 2018, arXiv:1706.06083, section 2.1).

    The first run starts at the image itself, so that one step is FGSM; further restarts start at
    random in the ball. A step is of size 2.5 epsilon / steps (section 5.1 there).
    """
    pursuit = Pursuit(model, images, goal, ball)
    for restart in range(restarts):
        start = pursuit.originals
        if restart > 0:
            start = random_start(start, pursuit.ball, generator)
        _climb(pursuit, start, steps=steps)
        if len(pursuit.rows) == 0:
            break
    return pursuit.result()


def pgd_to_the_end(
    model: nn.Module, images: Tensor, goal: Goal, ball: Ball, *, steps: int
) -> Tensor:
    """PGD that goes on where the goal is reached: how wrong, and how sure of it, the model can be.

    `pgd` stops just past the boundary, where no model is sure of anything and which another model
    draws elsewhere. Returns the pictures of the largest cross-entropy on the way, on the 8-bit
    lattice, float32 [n, 3, S, S].
    """
    best, largest = images, images.new_full((len(images),), -math.inf)
    iterates = images
    for step in range(steps + 1):
        _, loss, gradient = input_gradient(model, iterates, goal.cross_entropy)
        better = loss > largest
        best = torch.where(better.view(-1, 1, 1, 1), iterates, best)
        largest = torch.where(better, loss, largest)
        if step < steps:
            stride = 2.5 * ball.column(images) / steps
            iterates = project(iterates + stride * steepest(gradient, ball.norm), images, ball)
    return round_in_ball(best, images, ball)


def _climb(pursuit: Pursuit, iterates: Tensor, *, steps: int) -> None:
    for _ in range(steps):
        logits, _, gradient = input_gradient(pursuit.model, iterates, pursuit.goal.cross_entropy)
        pursuit.count()
        stands = pursuit.settle(iterates, pursuit.goal.reached(logits))
        iterates, gradient = iterates[stands], gradient[stands]
        if len(iterates) == 0:
            return
        ball = pursuit.ball
        step = 2.5 * ball.column(iterates) / steps * steepest(gradient, ball.norm)
        iterates = project(iterates + step, pursuit.originals, ball)
    pursuit.conclude(iterates)


def gradient_descent(
    model: nn.Module, images: Tensor, goal: Goal, *, steps: int, step_size: float = 0.01
) -> AttackResult:
    """What a first lesson does: pixels -= step_size * gradient of the cross-entropy, clipped.

    The cross-entropy is that of the target; if untargeted, of the likeliest wrong class (that of
    the label has no gradient left where the model is sure). No ball and no normalised gradient, so
    the size of the perturbation is whatever comes out; an image is done as soon as it fools the
    model after rounding to the nearest 8-bit levels.
    """
    pursuit = Pursuit(model, images, goal, WHOLE_CUBE)
    targets = goal.targets
    if targets is None:
        logits = logits_of(model, pursuit.originals)
        pursuit.count()
        targets = logits.scatter(1, goal.labels[:, None], float("-inf")).argmax(dim=1).clone()
    aim = Goal(labels=goal.labels, targets=targets)
    iterates = pursuit.originals
    for _ in range(steps):
        logits, _, gradient = input_gradient(model, iterates, aim.cross_entropy)
        pursuit.count()
        stands = pursuit.settle(iterates, pursuit.goal.reached(logits))
        aim = aim[stands]
        iterates = (iterates[stands] + step_size * gradient[stands]).clamp(0, 1)
        if len(iterates) == 0:
            break
    pursuit.conclude(iterates)
    return pursuit.result()

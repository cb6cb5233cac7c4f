"""Auto-PGD: PGD that chooses its own step size (Croce & Hein 2020, arXiv:2003.01690).

Constants are the paper's (section 3, algorithm 1). A targeted run of a three-class or two-class
model climbs the margin, since the DLR loss divides by a difference to the fourth-largest logit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, project, random_start, steepest
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.pursuit import AttackResult, Pursuit
from trainer.analysis.differentiable import input_gradient, logits_of

Loss = Callable[[Tensor, Goal], Tensor]  # (logits [n, K], aim) -> [n], to be ascended

_MOMENTUM = 0.75  # share of the gradient step; the rest continues the last move
_RISES = 0.75  # rho: halve the step if fewer of the steps raised the loss
_MOST_TARGETS = 9


def apgd_cross_entropy(
    model: nn.Module,
    images: Tensor,
    goal: Goal,
    ball: Ball,
    *,
    steps: int,
    generator: torch.Generator,
) -> AttackResult:
    """APGD on the cross-entropy (arXiv:2003.01690, section 3), from a random start."""
    pursuit = Pursuit(model, images, goal, ball)
    if len(pursuit.rows):
        _run(pursuit, pursuit.goal, _cross_entropy, steps, generator)
    return pursuit.result()


def apgd_targeted(
    model: nn.Module,
    images: Tensor,
    goal: Goal,
    ball: Ball,
    *,
    steps: int,
    generator: torch.Generator,
    most_targets: int = _MOST_TARGETS,
) -> AttackResult:
    """APGD towards one wrong class after the other (APGD-T, arXiv:2003.01690, section 4).

    The min(most_targets, K - 1) likeliest wrong classes, on the targeted difference-of-logits-ratio
    loss. Any wrong label counts as success if `goal` is untargeted; else its targets are the only
    ones tried.
    """
    pursuit = Pursuit(model, images, goal, ball)
    if goal.targets is not None:
        _run(pursuit, goal, _targeted_dlr, steps, generator)
        return pursuit.result()
    logits = logits_of(model, pursuit.originals)
    pursuit.count()
    wrong = logits.scatter(1, goal.labels[:, None], float("-inf")).argsort(dim=1, descending=True)
    for rank in range(min(most_targets, logits.shape[1] - 1)):
        if len(pursuit.rows) == 0:
            break
        targets = wrong[pursuit.rows, rank].clone()
        _run(
            pursuit,
            Goal(labels=pursuit.goal.labels, targets=targets),
            _targeted_dlr,
            steps,
            generator,
        )
    return pursuit.result()


def _cross_entropy(logits: Tensor, aim: Goal) -> Tensor:
    return aim.cross_entropy(logits)


def _targeted_dlr(logits: Tensor, aim: Goal) -> Tensor:
    """Equation 7 of arXiv:2003.01690, to be ascended; the bare difference where K < 4."""
    assert aim.targets is not None
    label, target = (
        logits.gather(1, chosen[:, None]).squeeze(1) for chosen in (aim.labels, aim.targets)
    )
    if logits.shape[1] < 4:
        return target - label
    top = logits.topk(4, dim=1).values
    return (target - label) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


@dataclass(kw_only=True)
class _Climb:
    """What one run knows of each standing image; every field has the images as first axis."""

    iterates: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor  # [n, 1, 1, 1]
    rises: Tensor  # since the last checkpoint
    loss_at_checkpoint: Tensor
    halved_at_checkpoint: Tensor

    def keep(self, stands: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[stands])


def _run(pursuit: Pursuit, aim: Goal, loss: Loss, steps: int, generator: torch.Generator) -> None:
    start = random_start(pursuit.originals, pursuit.ball, generator)
    logits, value, gradient = input_gradient(pursuit.model, start, lambda z: loss(z, aim))
    pursuit.count()
    state = _Climb(
        iterates=start,
        previous=start,
        gradient=gradient,
        loss=value,
        best=start.clone(),
        best_gradient=gradient.clone(),
        best_loss=value.clone(),
        step_size=2 * pursuit.ball.column(start) * torch.ones_like(value).view(-1, 1, 1, 1),
        rises=torch.zeros_like(value),
        loss_at_checkpoint=value.clone(),
        halved_at_checkpoint=torch.ones_like(value, dtype=torch.bool),
    )
    aim = _settled(state, pursuit, aim, logits)
    period, since = max(int(0.22 * steps), 1), 0
    for step in range(steps):
        if len(pursuit.rows) == 0:
            return
        _move(state, pursuit, first=step == 0)
        logits, value, state.gradient = input_gradient(
            pursuit.model,
            state.iterates,
            lambda z, aim=aim: loss(z, aim),  # type: ignore[misc]
        )
        pursuit.count()
        _remember(state, value)
        aim = _settled(state, pursuit, aim, logits)  # before a checkpoint goes back to the best
        since += 1
        if since == period:
            _checkpoint(state, period)
            period, since = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1), 0
    pursuit.conclude(state.best)


def _settled(state: _Climb, pursuit: Pursuit, aim: Goal, logits: Tensor) -> Goal:
    """Let go of the images whose iterates reach the goal; the aim of those that stand."""
    stands = pursuit.settle(state.iterates, pursuit.goal.reached(logits))
    if bool(stands.all()):
        return aim
    state.keep(stands)
    return aim[stands]


def _move(state: _Climb, pursuit: Pursuit, *, first: bool) -> None:
    x, originals, ball = state.iterates, pursuit.originals, pursuit.ball
    step = state.step_size * steepest(state.gradient, ball.norm)
    plain = project(x + step, originals, ball)
    share = 1.0 if first else _MOMENTUM
    mixed = x + share * (plain - x) + (1 - share) * (x - state.previous)
    state.previous, state.iterates = x, project(mixed, originals, ball)


def _remember(state: _Climb, value: Tensor) -> None:
    state.rises += (value > state.loss).to(value.dtype)
    state.loss = value
    better = value > state.best_loss
    state.best[better] = state.iterates[better]
    state.best_gradient[better] = state.gradient[better]
    state.best_loss[better] = value[better]


def _checkpoint(state: _Climb, period: int) -> None:
    """Halve the step and go back to the best point where the loss oscillates or stagnates."""
    oscillates = state.rises <= _RISES * period
    stagnates = ~state.halved_at_checkpoint & (state.loss_at_checkpoint >= state.best_loss)
    halve = oscillates | stagnates
    state.step_size[halve] /= 2
    state.iterates = torch.where(halve.view(-1, 1, 1, 1), state.best, state.iterates)
    state.gradient = torch.where(halve.view(-1, 1, 1, 1), state.best_gradient, state.gradient)
    state.loss_at_checkpoint = state.best_loss.clone()
    state.halved_at_checkpoint = halve
    state.rises = torch.zeros_like(state.rises)

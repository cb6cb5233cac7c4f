"""Square attack: random search by squares, no gradient (Andriushchenko et al., arXiv:1912.00049).

It sees through masked gradients: a model that resists PGD but not this one has hidden its gradient,
not gained robustness.
"""

import math

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, l2_norm, unit_l2
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.pursuit import AttackResult, Pursuit
from trainer.analysis.differentiable import logits_of

_SHARE = 0.8  # p of the paper, at first
# Section 5: p is halved after these shares of the queries (given there for 10,000).
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def square(
    model: nn.Module,
    images: Tensor,
    goal: Goal,
    ball: Ball,
    *,
    queries: int,
    generator: torch.Generator,
) -> AttackResult:
    """Random search (algorithm 1; L-infinity: algorithm 2, L2: algorithm 3).

    Climbs the margin, or minus the cross-entropy of the target if targeted (section 3.2). As in the
    AutoAttack of the same authors, the place of the square in a step is the same for all images of
    the batch; its signs differ, there in L2 alone.
    """
    pursuit = Pursuit(model, images, goal, ball)
    draw = _Draw(generator, images.device)
    _settle_originals(pursuit)
    if len(pursuit.rows) == 0:
        return pursuit.result()
    start = _stripes if ball.norm == "linf" else _bumps
    propose = _square_linf if ball.norm == "linf" else _square_l2
    best = start(pursuit.originals, pursuit.ball, draw)
    loss = torch.full((len(best),), -math.inf, device=best.device)
    trial = best
    for query in range(queries):
        logits = logits_of(model, trial)
        pursuit.count()
        value = _loss(logits, pursuit.goal)
        reached = pursuit.goal.reached(logits)
        better = (value > loss) | reached
        best = torch.where(better.view(-1, 1, 1, 1), trial, best)
        loss = torch.where(better, value, loss)
        stands = pursuit.settle(trial, reached)
        best, loss = best[stands], loss[stands]
        if len(best) == 0 or query == queries - 1:
            break
        share = _SHARE / 2 ** sum(query / queries > edge for edge in _HALVINGS)
        trial = propose(best, pursuit.originals, pursuit.ball, share, draw)
    # What rounding undid stays undone: to repair it takes the gradient.
    pursuit.settle(best, torch.ones_like(pursuit.rows, dtype=torch.bool))
    return pursuit.result()


class _Draw:
    """Random signs and places from one generator, on the images' device."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self._generator, self._device = generator, device

    def signs(self, *shape: int) -> Tensor:
        bits = torch.randint(0, 2, shape, generator=self._generator, device=self._generator.device)
        return (2.0 * bits - 1).to(self._device)

    def place(self, free: int) -> int:
        device = self._generator.device
        return int(torch.randint(0, free + 1, (), generator=self._generator, device=device))


def _settle_originals(pursuit: Pursuit) -> None:
    logits = logits_of(pursuit.model, pursuit.originals)
    pursuit.count()
    pursuit.settle(pursuit.originals, pursuit.goal.reached(logits))


def _loss(logits: Tensor, goal: Goal) -> Tensor:
    return goal.margin(logits) if goal.targets is None else goal.cross_entropy(logits)


def _side(size: int, share: float, least: int) -> int:
    return min(max(round(size * math.sqrt(share)), least), size)


def _stripes(originals: Tensor, ball: Ball, draw: _Draw) -> Tensor:
    """Vertical stripes of one pixel, each of its own sign and colour (section 3.3)."""
    n, channels, _, width = originals.shape
    return (originals + ball.column(originals) * draw.signs(n, channels, 1, width)).clamp(0, 1)


def _square_linf(best: Tensor, originals: Tensor, ball: Ball, share: float, draw: _Draw) -> Tensor:
    n, channels, height, width = best.shape
    side = _side(min(height, width), share, 1)
    top, left = draw.place(height - side), draw.place(width - side)
    window = (..., slice(top, top + side), slice(left, left + side))
    trial = best.clone()
    colour = ball.column(best) * draw.signs(n, channels, 1, 1)
    trial[window] = (originals[window] + colour).clamp(0, 1)
    return trial


def _bumps(originals: Tensor, ball: Ball, draw: _Draw) -> Tensor:
    """A grid of about 5 x 5 bumps (section 3.4)."""
    n, channels, height, width = originals.shape
    side = max(min(height, width) // 5, 2)
    delta = torch.zeros_like(originals)
    for top in range((height % side) // 2, height - side + 1, side):
        for left in range((width % side) // 2, width - side + 1, side):
            bump = _bump(side, draw).to(originals) * draw.signs(n, channels, 1, 1)
            delta[..., top : top + side, left : left + side] = bump
    return (originals + ball.column(originals) * unit_l2(delta)).clamp(0, 1)


def _square_l2(best: Tensor, originals: Tensor, ball: Ball, share: float, draw: _Draw) -> Tensor:
    """Move the budget of one window into a bump in another (algorithm 3)."""
    n, channels, height, width = best.shape
    side = min(_side(min(height, width), share, 3) | 1, min(height, width))
    epsilon = ball.column(best)
    windows = []
    for _ in range(2):
        top, left = draw.place(height - side), draw.place(width - side)
        windows.append((..., slice(top, top + side), slice(left, left + side)))
    new, emptied = windows
    delta = best - originals
    in_windows = torch.zeros_like(delta)
    in_windows[new], in_windows[emptied] = delta[new], delta[emptied]
    unused = (epsilon**2 - l2_norm(delta) ** 2).clamp_min(0)
    budget = (unused / channels + l2_norm(in_windows) ** 2).sqrt()
    bump = _bump(side, draw).to(best) * draw.signs(n, channels, 1, 1)
    bump = bump + delta[new] / _window_norm(delta[new])
    bump = bump / _window_norm(bump) * budget
    delta[emptied] = 0
    delta[new] = bump
    return (originals + epsilon * unit_l2(delta)).clamp(0, 1)


def _window_norm(window: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(window, dim=(-2, -1), keepdim=True)
    return norm.clamp_min(1e-12)


def _bump(side: int, draw: _Draw) -> Tensor:
    """[side, side] of L2 norm 1: two halves of opposite sign, each falling off from its centre."""
    upper = side // 2
    bump = torch.cat([_falloff(upper, side), -_falloff(side - upper, side)])
    bump = bump / _window_norm(bump)
    return bump.T if draw.place(1) else bump


def _falloff(height: int, width: int) -> Tensor:
    """Nested centred rectangles that add 1 / k^2 (equation 2)."""
    total = torch.zeros(height, width)
    centre = (height // 2, width // 2)
    for ring in range(max(height // 2, width // 2) + 1):
        top, left = centre[0] - ring, centre[1] - ring
        rows = slice(max(top, 0), max(top + 2 * ring + 1, 0))
        columns = slice(max(left, 0), max(left + 2 * ring + 1, 0))
        total[rows, columns] += 1.0 / (ring + 1) ** 2
    return total / _window_norm(total)

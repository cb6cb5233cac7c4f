"""A linear head on frozen features, solved by steps on batches of them instead of L-BFGS."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trainer.heads import initialise_head
from trainer.metrics import Floats
from trainer.optimizers import OPTIMIZERS
from trainer.probe import Head, Solver, standardised
from trainer.schedules import cosine
from trainer.split import Ints

# Rates at the start, for features whose columns have a mean square of 1. Those that do not adapt to
# each weight are shares of the largest at which descent on the whole objective can't diverge; where
# rows weigh differently, a batch that would need a lower one has its gradient shortened.
_RATES = {"adagrad": 0.05, "rmsprop": 3e-4, "adam": 1e-2, "adamw": 1e-2}
_SHARES = {"sgd": 1.8, "momentum": 1.0}


@contextmanager
def _one_thread() -> Iterator[None]:
    """A step is too small to be worth sharing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def solver_by_steps(
    *, optimizer: str, rate: float, epochs: int, batch_size: int, init: str, seed: int
) -> Solver:
    """A solver of the objective of trainer.probe.fit_head: mean cross-entropy + penalty/2 * |W|^2.

    Every fit begins with a head drawn as `init` says (trainer.heads) and takes `epochs` passes over
    the rows in batches, at a rate that falls to 0 along a cosine; rate 0: what suits the optimizer.
    The penalty is part of the loss, so Adam and AdamW are the same.
    """

    @_one_thread()
    def solve(
        features: Floats,
        labels: Ints,
        classes: int,
        penalty: float,
        start: Head | None = None,
        tolerance: float = 0.0,
        weights: Floats | None = None,
    ) -> Head:
        """`start` and `tolerance` are of solvers that search; not used."""
        x, centre, scale = standardised(features)
        width = x.shape[1]
        x *= width**0.5
        penalty = penalty * width
        draw = torch.Generator().manual_seed(seed)
        head = nn.Linear(width, classes)
        initialise_head(head, init, draw)
        targets = torch.from_numpy(labels)
        shares = np.ones(len(labels)) if weights is None else weights / weights.mean()
        share = torch.from_numpy(shares).float()
        step = OPTIMIZERS[optimizer]([{"params": head.parameters(), "weight_decay": 0.0}])
        known = rate or _RATES.get(optimizer)
        peak = known or _SHARES[optimizer] * _stable(x, share, penalty)
        careful = not known and bool((share != 1).any())
        batches = max(1, round(len(x) / batch_size))
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=draw).tensor_split(batches)
            for i, rows in enumerate(order):
                now = cosine(epoch * batches + i, epochs * batches, peak, 0)
                step.param_groups[0]["lr"] = now
                logits = head(x[rows])
                losses = cross_entropy(logits, targets[rows], reduction="none")
                loss = (losses * share[rows]).mean() + penalty / 2 * head.weight.square().sum()
                if careful:  # heavy rows make it steeper than the whole, which a low rate bears
                    most = _SHARES[optimizer] * _stable(x[rows], share[rows], penalty, 6)
                    loss = loss * min(1.0, most / now)
                step.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                step.step()
        weight = head.weight.detach().double().numpy() * width**0.5 / scale
        return Head(weight=weight, bias=head.bias.detach().double().numpy() - weight @ centre)

    return solve


def _stable(x: torch.Tensor, share: torch.Tensor, penalty: float, rounds: int = 20) -> float:
    """1 / L, with L the Lipschitz constant of the gradient: at most half the largest eigenvalue of
    the second moment of [x, 1], its rows weighted by `share` (Boehning 1992), and the penalty."""
    vector = torch.ones(x.shape[1])
    for _ in range(rounds):  # power iteration
        vector = x.T @ (x @ (vector / vector.norm()) * share) / len(x)
    return 1 / (max(float(vector.norm()), float(share.mean())) / 2 + penalty)

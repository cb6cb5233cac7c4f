"""Averages of weights: over the steps of a training, and between its start and its end."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

State = Mapping[str, torch.Tensor]


class MovingAverage:
    """Exponential moving average of a net's floating-point state; decay 0: the net as it is."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._net = net
        self._decay = decay
        self.steps = 0
        self.state = copy.deepcopy(net.state_dict()) if decay else {}

    def update(self) -> None:
        """After a step. The first steps count more: else the average would stick to the start."""
        if not self._decay:
            return
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self._net.state_dict().items():
            kept = self.state[name]
            kept.copy_(torch.lerp(value, kept, decay) if kept.is_floating_point() else value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The net with the averaged weights, and as it was again afterwards."""
        if not self._decay:
            yield
            return
        current = copy.deepcopy(self._net.state_dict())
        self._net.load_state_dict(self.state)
        try:
            yield
        finally:
            self._net.load_state_dict(current)

    def resume(self, state: State, steps: int) -> None:
        """Go on from such a state, which may be on another device, after so many steps."""
        self.steps = steps
        for name, kept in self.state.items():
            kept.copy_(state[name])


def interpolate(first: State, last: State, share: float) -> dict[str, torch.Tensor]:
    """(1 - share) * first + share * last; counters as in `last`."""
    return {
        name: torch.lerp(first[name], value, share) if value.is_floating_point() else value
        for name, value in last.items()
    }


def best_between(
    first: State, last: State, loss: Callable[[State], tuple[float, ...]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The share, in tenths, and the weights of lowest `loss` on the line from `first` to `last`.

    WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): between a probe and what was fine-tuned from
    it lie nets that are right more often than either, most of all on photos of another kind.
    """
    states = {i / 10: interpolate(first, last, i / 10) for i in range(11)}
    share = min(states, key=lambda each: loss(states[each]))
    return share, states[share]

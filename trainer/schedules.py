"""Learning rates as pure functions of the step: (step, total, peak, warmup) -> rate.

Step 0 is the first, and already has a rate above 0; `warmup` is a share of `total`.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, float, float], float]

_START, _END = 25.0, 1e4  # one cycle: the peak over its first rate, and that over its last


def cosine(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak`, then half a cosine to 0 (Loshchilov and Hutter 2017, SGDR)."""
    rising = warmup * total
    if step < rising:
        return _rise(step, rising, peak)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))


def constant(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak`, then `peak`."""
    rising = warmup * total
    return _rise(step, rising, peak) if step < rising else peak


def one_cycle(step: int, total: int, peak: float, warmup: float) -> float:
    """Half a cosine from peak/25 up, half a cosine down to almost nothing (Smith and Topin 2019).

    arXiv:1708.07120; it wants a long `warmup`, such as 0.3.
    """
    rising = warmup * total
    low = peak / _START
    if step < rising:
        return _swing(low, peak, step / rising)
    return _swing(peak, low / _END, (step - rising) / (total - rising))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "one-cycle": one_cycle, "constant": constant}


def _rise(step: int, rising: float, peak: float) -> float:
    return peak * (step + 1) / (rising + 1)


def _swing(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))

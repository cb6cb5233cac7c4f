"""Whether one version is more often right than another, from the same photos. Pure."""

import math
from typing import Any

import numpy as np
from scipy.stats import binomtest

from trainer.metrics import Bools

_Z = 1.959964  # of 95 %, two-sided
_SHOWN = 0.05  # p-value from which on downwards a difference is no chance


def paired(one: Bools, other: Bools) -> dict[str, Any]:
    """How the accuracy changes from `one` to `other`: [n] each, the photos that it has right.

    Photos that both have right, or both wrong, tell nothing of that: so the exact test of McNemar
    1947 on the others, and the interval of Agresti & Min 2005 (Statistics in Medicine 24:729) for
    the difference, which is narrower than two intervals put side by side let expect.
    """
    n, gained, lost = len(one), int(np.sum(other & ~one)), int(np.sum(one & ~other))
    more = n + 2  # half a photo added to each of the four kinds
    middle = (gained - lost) / more
    spread = math.sqrt(max(0.0, (gained + lost + 1) - more * middle**2)) / more
    differ = gained + lost
    return {
        "photos": n,
        "correct": [int(one.sum()), int(other.sum())],
        "gained": gained,
        "lost": lost,
        "change": (gained - lost) / n,
        "low": max(-1.0, middle - _Z * spread),
        "high": min(1.0, middle + _Z * spread),
        "p_value": float(binomtest(gained, differ).pvalue) if differ else 1.0,
    }


def in_a_sentence(p: dict[str, Any]) -> str:
    """Of what `paired` gives."""
    verdict = "chance alone may do as much" if p["p_value"] > _SHOWN else "more than chance does"
    return (
        f"{p['correct'][0]} and {p['correct'][1]} of {p['photos']} photos are right "
        f"({p['gained']} gained, {p['lost']} lost): {points(p['change'])} points "
        f"({points(p['low'])} to {points(p['high'])}), p = {p['p_value']:.2g}: {verdict}"
    )


def points(change: float) -> str:
    return f"{100 * change:+.1f}"

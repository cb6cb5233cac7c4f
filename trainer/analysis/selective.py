"""How sure an answer must be to be believed, and whether that tells strange pictures. Pure.

A classifier that may decline: it answers where its highest probability is at least a threshold.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, rankdata

from trainer.metrics import Bools, Floats

DELTA = 0.05  # chance that a threshold promises too much
LOOKS = 10  # thresholds that are tried


@dataclass(frozen=True, kw_only=True)
class Threshold:
    value: float  # answered is what is at least as sure; as `rounded_down` has it
    answered: int  # photos
    correct: int  # of those


def threshold_for(
    confidence: Floats, right: Bools, accuracy: float, delta: float = DELTA
) -> Threshold | None:
    """The lowest threshold at which at least `accuracy` of what is answered is right, with
    probability 1 - delta over the draw of the photos; None where they do not show it.

    confidence, right: [n]. Looked at are the thresholds that answer a tenth, two tenths ... all of
    them: the risk is bounded at each, with the exact binomial bound and the chance of an error
    shared out (Geifman & El-Yaniv 2017, arXiv:1705.08500, bisect instead; a bound that few photos
    make loose then hides what all of them show).
    """
    order = np.sort(confidence)[::-1]
    for tenth in range(LOOKS, 0, -1):
        value = rounded_down(float(order[math.ceil(len(order) * tenth / LOOKS) - 1]))
        answered = confidence >= value
        n, correct = int(answered.sum()), int(right[answered].sum())
        if lower_bound(correct, n, delta / LOOKS) >= accuracy:
            return Threshold(value=value, answered=n, correct=correct)
    return None


def rounded_down(probability: float) -> float:
    """To two digits of what it lacks of 1, so that what is tried is what is told: 0.82, 0.99993."""
    if probability >= 1:
        return 1.0
    scale = 10.0 ** (1 - math.floor(math.log10(1 - probability)))
    return math.floor(probability * scale) / scale


def lower_bound(correct: int, n: int, delta: float) -> float:
    """Of the share that `correct` of n were drawn from (Clopper & Pearson 1934, one-sided)."""
    return float(beta.ppf(delta, correct, n - correct + 1)) if correct else 0.0


def photos_needed(accuracy: float) -> int:
    """How many answers without an error show `accuracy`."""
    return math.ceil(math.log(DELTA / LOOKS) / math.log(accuracy))


def auroc(inside: Floats, outside: Floats) -> float:
    """The chance that one of `inside` [n] is above one of `outside` [m]; of equal ones, half."""
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    above = float(ranks.sum()) - len(inside) * (len(inside) + 1) / 2
    return above / (len(inside) * len(outside))

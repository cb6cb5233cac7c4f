"""How sure an answer must be to be believed, and whether that tells strange pictures. Pure.

A classifier that may decline: it answers where its highest probability is at least a threshold.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, rankdata

from trainer.metrics import Bools, Floats

DELTA = 0.05  # chance that a threshold promises too much
_BEGINNINGS = 2  # that share it


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

    confidence, right: [n]. Less and less sure photos are taken in for as long as the exact binomial
    bound shows it. Where the order of tests is fixed and the first that fails ends them, none has
    to share its chance of an error with the others ("fixed sequence testing" in Angelopoulos et al.
    2021, arXiv:2110.01052). It begins twice, with half of that chance each: at so few photos that
    one error ends it, which small sets need, and at half of all, where some may be wrong.
    """
    steps = sorted({rounded_down(value) for value in confidence.tolist()}, reverse=True)
    few, found = photos_needed(accuracy, delta), None
    for first in (few, max(few, len(confidence) / 2)):
        for value in steps:
            answered = confidence >= value
            n, correct = int(answered.sum()), int(right[answered].sum())
            if n < first:
                continue
            if lower_bound(correct, n, delta / _BEGINNINGS) < accuracy:
                break
            if found is None or n > found.answered:
                found = Threshold(value=value, answered=n, correct=correct)
    return found


def rounded_down(probability: float) -> float:
    """To two digits of what it lacks of 1, so that what is tried is what is told: 0.82, 0.99993."""
    if probability >= 1:
        return 1.0
    scale = 10.0 ** (1 - math.floor(math.log10(1 - probability)))
    return math.floor(probability * scale) / scale


def lower_bound(correct: int, n: int, delta: float) -> float:
    """Of the share that `correct` of n were drawn from (Clopper & Pearson 1934, one-sided)."""
    return float(beta.ppf(delta, correct, n - correct + 1)) if correct else 0.0


def photos_needed(accuracy: float, delta: float = DELTA) -> int:
    """How many answers without an error show `accuracy`."""
    return math.ceil(math.log(delta / _BEGINNINGS) / math.log(accuracy))


def auroc(inside: Floats, outside: Floats) -> float:
    """The chance that one of `inside` [n] is above one of `outside` [m]; of equal ones, half."""
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    above = float(ranks.sum()) - len(inside) * (len(inside) + 1) / 2
    return above / (len(inside) * len(outside))

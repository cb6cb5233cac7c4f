"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2)."""

import math

import numpy as np
from scipy.optimize import minimize_scalar

from trainer.metrics import Floats, Ints, log_softmax

_LOG_RANGE = (math.log(0.05), math.log(20.0))


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The T > 0 with which softmax(logits / T) fits `labels` [n] best; logits [n, K].

    Targets are softened as in Platt (1999, section 2.2): (n + 1) / (n + 2) for the label, the rest
    spread over the others. So T stays finite and above 0 where every photo is right. Every photo
    counts alike, of uneven classes too: a confidence is to say how often answers are right.
    """
    scaled = np.asarray(logits, dtype=np.float64)
    photos, classes = scaled.shape
    targets = np.full((photos, classes), 1 / (photos + 2) / (classes - 1))
    targets[np.arange(photos), labels] = (photos + 1) / (photos + 2)

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(scaled / math.exp(log_temperature))
        return -float(np.mean(np.sum(targets * log_p, axis=1)))

    return math.exp(minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded").x)

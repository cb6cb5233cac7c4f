"""Whether a net answers better than one that has not seen the photos."""

import numpy as np

from serving.modelspec import Metrics
from trainer.config import TrainConfig
from trainer.metrics import Floats, Ints, confusion_matrix

_FEW = 30  # test photos


def right_by_chance(predictions: Ints, labels: Ints, classes: int) -> float:
    """The share of `predictions` [n] that were right if they came as often as they do, but to any
    photo (Cohen 1960, A coefficient of agreement for nominal scales).

    Who always says the same label has that label's share of `labels` [n].
    """
    counts = confusion_matrix(predictions, labels, classes) / len(labels)
    return float(np.sum(counts.sum(axis=0) * counts.sum(axis=1)))


def may_be_chance(
    metrics: Metrics, logits: Floats, labels: Ints, config: TrainConfig
) -> str | None:
    """What to say of a net whose `metrics` on the test photos chance explains as well.

    logits [n, K], labels [n].
    """
    chance = right_by_chance(logits.argmax(axis=1), labels, logits.shape[1])
    if metrics.accuracy_low > chance:
        return None
    if metrics.photos < _FEW:
        advice = "so few say little; give it more test photos"
    elif config.weights == "none":
        advice = (
            "it has learnt nothing that shows; from scratch try another --learning-rate "
            "(--find-rate suggests one), more --epochs, or pre-trained --weights"
        )
    else:
        advice = "it has learnt nothing that shows; are the labels right, and the photos enough?"
    return (
        f"Warning: {metrics.correct} of {metrics.photos} test photos right may be chance, by which "
        f"{chance:.1%} would be: {advice}"
    )

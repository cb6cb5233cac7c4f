"""How good and how honest predictions are: pure functions of logits or probabilities and labels."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

_TOSSES = 20_000  # the chance near 0.05 is then known to 0.0015


def accuracy(scores: Floats, labels: Ints) -> float:
    """Share of rows of `scores` [n, K] that are highest at the label; nan if there are none."""
    return float(np.mean(scores.argmax(axis=1) == labels)) if len(labels) else math.nan


def mean_recall(scores: Floats, labels: Ints) -> float:
    """Accuracy of each class that occurs in `labels`, averaged: every class counts alike.

    Also called balanced accuracy (Brodersen et al. 2010). scores [n, K], labels [n].
    """
    return mean_over_classes(scores.argmax(axis=1) == labels, labels)


def mean_over_classes(right: Bools, labels: Ints) -> float:
    """The share of `right` [n] in each class that occurs in `labels` [n], averaged."""
    return float(np.mean([np.mean(right[labels == each]) for each in np.unique(labels)]))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1).

    Unlike the textbook interval it stays within [0, 1] and has a width at 0 and at `total`.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"expected 0 <= correct <= total and total > 0, got {correct}, {total}")
    z = 1.959964  # of 95 %
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def softmax(logits: Floats) -> Floats:
    """Probabilities [n, K]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities [n, K]; nan in a row whose logits are not finite."""
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def nll(logits: Floats, labels: Ints, weights: Floats | None = None) -> float:
    """Mean negative log-likelihood of `labels` [n] under softmax(`logits` [n, K]), in nats.

    weights [n]: of the rows in the mean; None for equal ones.
    """
    log_p = log_softmax(logits)[np.arange(len(labels)), labels]
    return -float(np.average(log_p, weights=weights))


def divergence(expected: Floats, got: Floats) -> float:
    """Mean Kullback-Leibler divergence of softmax(`got`) from softmax(`expected`), nats; [n, K]."""
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (expected, got))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def reliability(probabilities: Floats, labels: Ints, bins: int = 15) -> tuple[Ints, Floats, Floats]:
    """Photos, mean confidence and accuracy in equal-width bins (lower, upper] of confidence.

    Confidence is the highest probability of a row of `probabilities` [n, K]. Both means are 0 in an
    empty bin.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = np.maximum(counts, 1)
    mean_confidence = np.bincount(index, confidence, minlength=bins) / filled
    mean_accuracy = np.bincount(index, right, minlength=bins) / filled
    return counts, mean_confidence, mean_accuracy


def expected_calibration_error(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins, weighted by photos (Guo et al. 2017, section 2)."""
    counts, confidence, right = reliability(probabilities, labels, bins)
    return float(np.sum(counts * np.abs(right - confidence)) / max(len(labels), 1))


def confusion_matrix(predictions: Ints, labels: Ints, classes: int) -> Ints:
    """int64 [K, K]: photos of class `row` that were taken for class `column`."""
    cells = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.reshape(classes, classes)


def chance_of_gain(before: Floats, after: Floats, labels: Ints) -> float:
    """How likely chance alone makes `after` at least that much more often right than `before`.

    The exact one-sided test of McNemar 1947 on scores [n, K] for the same photos: only those that
    one has right and the other wrong count, and chance tosses a coin for each. 1 for no difference.
    """
    was, now = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    gained, lost = int(np.sum(now & ~was)), int(np.sum(was & ~now))
    differ = gained + lost
    ways = sum(math.comb(differ, k) for k in range(gained, differ + 1))
    return float(ways / 2**differ)


def chance_of_balanced_gain(
    before: Floats, after: Floats, labels: Ints, generator: np.random.Generator
) -> float:
    """As `chance_of_gain`, for the mean recall: of all ways to toss those coins, a sample.

    A randomisation test of the gain, in which a photo weighs the inverse of how often its class
    occurs in `labels`. The gain seen is one of the sample, so that the chance is never 0.
    """
    was, now = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    gained, lost = (np.bincount(index[x], minlength=len(counts)) for x in (now & ~was, was & ~now))
    differ = gained + lost
    tossed = generator.binomial(differ, 0.5, size=(_TOSSES, len(counts)))
    as_much = (2 * tossed - differ) @ (1 / counts) >= (gained - lost) @ (1 / counts) - 1e-12
    return float((1 + np.sum(as_much)) / (1 + _TOSSES))

"""Labels that are probably wrong: what they say is nothing that the photo looks like."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from serving.csv_text import csv_text
from trainer.calibration import fit_temperature
from trainer.console import Console
from trainer.data import LabelError, PhotoData, targets_of
from trainer.metrics import Floats, Ints, log_softmax, nll
from trainer.pictures import Photo

LABEL_ERRORS = "label_errors.csv"
_NAMED = 10  # at most, in the log
PROBABLY = 0.5  # what a label's probability to be wrong must be above
# Of the temperature, searched in steps that are small against the width of its minimum.
_LOG_TEMPERATURES = np.linspace(math.log(0.05), math.log(20.0), 13)
_LARGEST = 0.9  # share of labels drawn at random
_PLAUSIBLE = 0.25  # share of labels that may be wrong without more evidence
_EM_STEPS = 100
_MOST_CLASSES = 20  # that have shares of their own: of more there are few photos for each
_LEAST = 1e-9  # such a share: no label is impossible


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """Of `shares[k]` of the photos of class k somebody drew the label at random, from all classes
    alike."""

    shares: Floats  # [K]
    temperature: float  # of the logits, for the photos that have their own label
    gain: float  # log-likelihood over that of the best temperature and no noise, nats


def fit_label_noise(logits: Floats, labels: Ints) -> LabelNoise:
    """The noise with which `labels` [n] are most likely, given `logits` [n, K] of nets that have
    not learnt from these photos.

    P(label) = (1 - share) softmax(logits / temperature) + share / K: the model of Bootkrajang and
    Kaban 2012 (Label-noise robust logistic regression and its applications) with one number for all
    pairs of classes; or one for each class where that explains far more, as where photos of one
    were put among those of another. The temperature is fitted beside it, as a head that has learnt
    from wrong labels is less sure than it should be of right ones.
    """
    clean = nll(logits.astype(np.float64) / fit_temperature(logits, labels), labels)
    photos, classes = logits.shape
    share, temperature, loss = _one_share(logits, labels)
    shares = np.full(classes, share)
    if classes <= _MOST_CLASSES:
        each, its_temperature, its_loss = _share_of_each(logits, labels, temperature)
        # Schwarz's criterion. A net that leans to some classes must not explain as much: it has
        # as many numbers, less one, and accuses nobody.
        price = 0.5 * math.log(photos) / photos
        leaning = _leaning(logits, labels) - price
        if its_loss < min(loss - (classes - 1) * price, leaning):
            shares, temperature, loss = each, its_temperature, its_loss
    return LabelNoise(shares=shares, temperature=temperature, gain=photos * (clean - loss))


def _one_share(logits: Floats, labels: Ints) -> tuple[float, float, float]:
    """(share, temperature, mean loss)."""
    classes = logits.shape[1]

    def best_share(temperature: float) -> tuple[float, float]:
        """(share, mean loss) at that temperature."""
        own = _own(logits, labels, temperature)
        share = 0.1
        for _ in range(_EM_STEPS):  # rises with every step to the one maximum
            drawn = share / classes
            share = min(_LARGEST, float(np.mean(drawn / ((1 - share) * own + drawn))))
        return share, -float(np.mean(np.log((1 - share) * own + share / classes)))

    def loss(log_temperature: float) -> float:
        return best_share(math.exp(log_temperature))[1]

    at = int(np.argmin([loss(value) for value in _LOG_TEMPERATURES]))
    about = _LOG_TEMPERATURES[max(0, at - 1)], _LOG_TEMPERATURES[at : at + 2][-1]
    temperature = math.exp(minimize_scalar(loss, bounds=about, method="bounded").x)
    return (best := best_share(temperature))[0], temperature, best[1]


def _share_of_each(logits: Floats, labels: Ints, about: float) -> tuple[Floats, float, float]:
    """(shares [K], temperature, mean loss); about: the temperature with one share for all."""
    photos, classes = logits.shape
    rows, scores = np.arange(photos), logits.astype(np.float64)

    def loss(at: Floats) -> tuple[float, Floats]:
        """And its slopes; at: log of the temperature, and the shares."""
        scaled, shares = scores / math.exp(at[0]), at[1:]
        p = np.exp(log_softmax(scaled))
        chance = p[rows, labels] * (1 - shares[labels]) + p @ shares / classes
        to_p = np.broadcast_to(shares / classes, p.shape).copy()
        to_p[rows, labels] += 1 - shares[labels]
        off = scaled - np.sum(p * scaled, axis=1, keepdims=True)
        to_temperature = -np.sum(to_p * p * off, axis=1)
        to_shares = p / classes
        to_shares[rows, labels] -= p[rows, labels]
        slopes = np.column_stack([to_temperature, to_shares]) / chance[:, None]
        return -float(np.mean(np.log(chance))), -slopes.mean(axis=0)

    bounds = [(_LOG_TEMPERATURES[0], _LOG_TEMPERATURES[-1]), *[(_LEAST, _LARGEST)] * classes]
    tried = [
        minimize(loss, np.array([math.log(start), *[0.05] * classes]), jac=True, bounds=bounds)
        for start in (about, about / 2)  # with more of the noise explained a net may be surer
    ]
    best = min(tried, key=lambda one: float(one.fun))
    return best.x[1:], math.exp(best.x[0]), float(best.fun)


def _leaning(logits: Floats, labels: Ints) -> float:
    """The mean loss without noise, of the best temperature and a number added to each class."""
    scores = logits.astype(np.float64)
    given = labels[:, None] == np.arange(scores.shape[1])

    def loss(at: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(at[0] * scores + at[1:])
        off = np.exp(log_p) - given
        slopes = np.append(np.mean(np.sum(off * scores, axis=1)), off.mean(axis=0))
        return -float(np.mean(log_p[given])), slopes

    start = np.append(1 / fit_temperature(logits, labels), np.zeros(scores.shape[1]))
    return float(minimize(loss, start, jac=True, method="L-BFGS-B").fun)


def probably_wrong(logits: Floats, labels: Ints) -> Floats:
    """How likely each of `labels` [n] is to be wrong, [n]: above 0 only where `logits` [n, K] are
    higher at another. They must be of nets that have not learnt from these photos.

    More than a quarter are not believed where a temperature by itself explains the labels about as
    well (Schwarz 1978, Estimating the dimension of a model): what a poor net has wrong, and is as
    sure of as of the rest, looks like noise.
    """
    if not np.isfinite(logits).all():  # of a head whose steps ran away: it has nothing to say
        return np.zeros(len(labels))
    noise = fit_label_noise(logits, labels)
    p = np.exp(log_softmax(logits.astype(np.float64) / noise.temperature))
    own, shares = p[np.arange(len(labels)), labels], noise.shares[labels]
    drawn = p @ noise.shares / logits.shape[1]
    by_chance = own * shares / logits.shape[1]  # drawn, and the right one all the same
    wrong: Floats = (drawn - by_chance) / (own * (1 - shares) + drawn)
    wrong[logits.argmax(axis=1) == labels] = 0.0
    if np.mean(wrong > PROBABLY) > _PLAUSIBLE and noise.gain <= 0.5 * math.log(len(labels)):
        return np.zeros(len(labels))
    return wrong


def _own(logits: Floats, labels: Ints, temperature: float) -> Floats:
    """The probability [n] of its label for each photo, were none drawn at random."""
    log_p = log_softmax(logits.astype(np.float64) / temperature)
    return np.asarray(np.exp(log_p[np.arange(len(labels)), labels]))


def with_label_errors(data: PhotoData, out_of_fold: Floats, *, drop: bool) -> PhotoData:
    """`data` with those of its train and val photos found, whose logits [n, K] these are.

    drop: and without them in these splits; but a class of which that would be more than half of a
    split keeps them, as it is not understood, which says nothing of its labels.
    """
    photos = [(split, photo) for split in ("train", "val") for photo in data.splits[split]]
    found = _found(photos, out_of_fold)
    if drop:
        of = Counter((split, photo.label) for split, photo in photos)
        named = Counter((error.split, error.photo.label) for error in found)
        few = {key for key, count in named.items() if 2 * count <= of[key]}
        found = [replace(e, dropped=(e.split, e.photo.label) in few) for e in found]
    gone = {error.photo for error in found if error.dropped}
    splits = {
        split: tuple(photo for photo in members if photo not in gone)
        for split, members in data.splits.items()
    }
    return replace(data, splits=splits, label_errors=_sorted(found))


def with_test_label_errors(data: PhotoData, logits: Floats) -> PhotoData:
    """`data` with those of its test photos found too, whose logits [n, K] these are."""
    found = _found([("test", photo) for photo in data.splits["test"]], logits)
    return replace(data, label_errors=_sorted([*data.label_errors, *found]))


def _found(photos: Sequence[tuple[str, Photo]], logits: Floats) -> list[LabelError]:
    """Of these photos, each with its split; `logits` [n, K] of nets that have not seen them."""
    wrong = probably_wrong(logits, targets_of([photo for _, photo in photos]))
    return [
        LabelError(
            photo=photo,
            split=split,
            looks_like=int(row.argmax()),
            probability=float(each),
            dropped=False,
        )
        for (split, photo), row, each in zip(photos, logits, wrong, strict=True)
        if each > PROBABLY
    ]


def _sorted(found: Sequence[LabelError]) -> tuple[LabelError, ...]:
    return tuple(sorted(found, key=lambda error: -error.probability))


def say_label_errors(data: PhotoData, splits: Sequence[str], console: Console) -> None:
    """Those of `splits`."""
    found = [error for error in data.label_errors if error.split in splits]
    if not found:
        return
    console.line(
        f"The label of {len(found)} {' and '.join(splits)} photos is probably wrong "
        f"({LABEL_ERRORS} of the version will hold them all, its plots/label_errors.png the first):"
    )
    for error in found[:_NAMED]:
        looks_like = data.labels[error.looks_like]
        console.line(f"  {error.photo.file}: looks like {looks_like} ({error.probability:.2f})")
    if len(found) > _NAMED:
        console.line(f"  and {len(found) - _NAMED} more")
    dropped = sum(error.dropped for error in found)
    if dropped:
        console.line(f"{dropped} of them are left out of train and val (--drop-label-errors)")


def label_errors_csv(data: PhotoData) -> str:
    """A table of those of `data`, the surest first."""
    rows = [("path", "split", "label", "looks_like", "probability", "dropped")]
    for error in data.label_errors:
        label, looks_like = data.labels[error.photo.label], data.labels[error.looks_like]
        probability = f"{error.probability:.4f}"
        dropped = "yes" if error.dropped else "no"
        rows.append((error.photo.file, error.split, label, looks_like, probability, dropped))
    return csv_text(rows)

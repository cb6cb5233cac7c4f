"""How like the photos learnt from a picture is, by the features of the net.

A Gaussian over all classes, of some directions and a ball in the others (as in probabilistic PCA;
Tipping and Bishop 1999, section 3), and the Mahalanobis distance from its centre (after Lee et al.
2018, arXiv:1807.03888), of features of length 1 (Mueller and Hein 2025, arXiv:2505.18032). The
distance alone means nothing: it is compared with those of photos that were held out, which makes a
conformal p-value of it (Bates et al. 2023, arXiv:2104.08279).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from trainer.blas import one_blas_thread
from trainer.metrics import Floats
from trainer.split import Ints

FEWEST = 20  # photos: of fewer nothing can be said
DIRECTIONS = 64  # more of them tell strange pictures no better, of 50 photos or of 725
_NO_VARIANCE = 1e-12  # of features of length 1
# Where photos of a class are one to the net, hardly any is asked for, and what is left of a picture
# would be divided by what 32 bits can't tell from 0.
_LEAST = 1e-6  # shrinkage

NO_LENGTH = 1e-12  # added to a squared length, that none is 0

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Of features x of length 1, by the squared distance of one from `centre`: its part along each
    direction and what is left, |x - centre - its parts|^2, each divided by the variance there."""

    centre: Doubles  # [F]
    directions: Doubles  # [F, D], orthonormal columns
    variances: Doubles  # [D]: along each
    rest: float  # the variance along all others

    def distances(self, features: Floats) -> Doubles:
        """Squared, of features [n, F] of any length: [n]."""
        away = _of_length_1(features) - self.centre
        along = away @ self.directions
        left = away - along @ self.directions.T
        squared: Doubles = np.square(left).sum(axis=1) / self.rest
        return squared + np.square(along) @ (1 / self.variances)


@one_blas_thread()
def fit_gaussian(features: Floats, directions: int = DIRECTIONS) -> Gaussian:
    """To features [n, F], shrunk towards a ball as far as so few photos ask for (Ledoit and Wolf
    2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3).

    directions: at most, those of the most variance. Raises ValueError where the features are equal.
    """
    directed = _of_length_1(features)
    centre = directed.mean(axis=0)
    away = directed - centre
    count, width = away.shape
    by_photos = count < width  # the smaller of the two products has the same eigenvalues
    product = (away @ away.T if by_photos else away.T @ away) / count
    mean = np.trace(product) / width  # of the variances
    squared = np.square(product).sum()
    apart = squared - width * mean**2
    noise = np.square(np.square(away).sum(axis=1)).sum() / count**2 - squared / count
    if not mean > _NO_VARIANCE or not apart > 0:  # NaN fails too
        raise ValueError(f"the features of {count} photos are all the same")
    shrinkage = min(max(noise / apart, _LEAST), 1.0)
    size = len(product)
    kept = min(directions, count - 1, width)
    variances, vectors = eigh(product, subset_by_index=(size - kept, size - 1))
    if by_photos:
        vectors = away.T @ vectors / np.sqrt(count * np.maximum(variances, _NO_VARIANCE))
    others = max(width * mean - variances.sum(), 0.0) / max(width - kept, 1)
    along, rest = ((1 - shrinkage) * each + shrinkage * mean for each in (variances, others))
    return Gaussian(
        centre=centre,
        directions=vectors,
        variances=along,
        rest=rest,
    )


def _of_length_1(features: Floats) -> Doubles:
    """[n, F]; but for 0, which stays so."""
    squared = np.square(features, dtype=np.float64).sum(axis=1, keepdims=True)
    directed: Doubles = features / np.sqrt(squared + NO_LENGTH)
    return directed


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Gaussians, each for photos that it was not fitted to; the first for those to come too."""

    gaussians: tuple[Gaussian, ...]
    of: Ints  # [n]: which judges each of the photos that are compared with

    def distances(self, features: Floats) -> Doubles:
        """Of those photos' features [n, F]: [n]."""
        found = np.empty(len(features))
        for number, gaussian in enumerate(self.gaussians):
            mine = self.of == number
            found[mine] = gaussian.distances(features[mine])
        return found


def judges_of(features: Floats, held: int) -> Judges:
    """Of a net that was trained on the first photos and not on the last `held`, which are compared
    with; features [n + held, F]. Raises ValueError."""
    fitted = fit_gaussian(features[: len(features) - held])
    return Judges(gaussians=(fitted,), of=np.zeros(held, np.int64))


def judges_by_folds(features: Floats, folds: Ints) -> Judges:
    """Of a net that was trained on none of the photos: all are compared with, each judged by what
    the other folds show (Vovk 2015, arXiv:1208.0806); folds [n]. Raises ValueError.

    No Gaussian is of all photos: distances by one of more photos are others, nearer or farther, and
    of ordinary photos four times as many were unfamiliar as is said, or a tenth.
    """
    numbers, of = np.unique(folds, return_inverse=True)
    fitted = [fit_gaussian(features[folds != fold]) for fold in numbers]
    return Judges(gaussians=tuple(fitted), of=of)


def familiarity(distances: Sequence[float] | Doubles, known: Doubles) -> Doubles:
    """Share of the photos `known` [m] that are as far as each of `distances` [n], the photo itself
    among them: [n], from 1 / (m + 1) to 1."""
    farther = len(known) - np.searchsorted(np.sort(known), distances, side="left")
    return (1 + farther) / (1 + len(known))


def threshold_of(photos: int, level: float) -> float:
    """The familiarity at which a picture is unfamiliar: `level`, or that of the strangest where so
    few photos are compared with that none could have less."""
    return max(level, 1 / (photos + 1))

"""A linear head on frozen features: logistic regression, its penalty cross-validated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch.nn.functional import nll_loss

from trainer.blas import one_blas_thread
from trainer.console import Advance
from trainer.metrics import Floats, nll
from trainer.split import Ints, stratified_folds

PENALTIES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
_FOLDS = 5
MOST_FITS = len(PENALTIES) * _FOLDS + 1
_ITERATIONS = 300
_ROWS = 4096  # at once: what 1,000 classes make of them stays in the processor's cache
_ROUGH = 1e-6  # relative decrease of the loss at which a fit ends: enough to compare penalties


@dataclass(frozen=True, kw_only=True)
class Head:
    weight: Floats  # [K, F]
    bias: Floats  # [K]

    def logits(self, features: Floats) -> Floats:
        """[n, K]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True)
class Probe:
    penalty: float
    head: Head  # fitted to all photos
    out_of_fold: Floats  # [n, K]: logits of each photo by a head that has not seen it


class Solver(Protocol):
    def __call__(
        self,
        features: Floats,
        labels: Ints,
        classes: int,
        penalty: float,
        start: Head | None = None,
        tolerance: float = ...,
        weights: Floats | None = None,
    ) -> Head:
        """The minimum of fit_head's objective, or near it."""


def standardised(features: Floats) -> tuple[torch.Tensor, Floats, float]:
    """(x [n, F], centre [F], scale): features = x * scale + centre, where rows of x have mean 0 and
    a mean square length of 1."""
    centre = features.mean(axis=0)
    scale = float(np.sqrt(np.mean(np.sum((features - centre) ** 2, axis=1)))) or 1.0
    return torch.from_numpy(((features - centre) / scale).astype(np.float32)), centre, scale


@one_blas_thread()
def fit_head(
    features: Floats,
    labels: Ints,
    classes: int,
    penalty: float,
    start: Head | None = None,
    tolerance: float = 1e-8,
    weights: Floats | None = None,
) -> Head:
    """The minimum of mean cross-entropy + penalty/2 * |W|^2, by L-BFGS.

    features [n, F], labels [n]; weights [n]: of the rows in the mean, None for equal ones.
    The bias is free. Features are centred, and divided by one number so that the mean of |x|^2 is
    1; so a penalty means the same for every backbone, and the rows converge fast.
    Returned for features as given. The problem is convex: `start` (of another penalty) only saves
    time. It ends when a step lowers the loss by less than `tolerance` of it.
    """
    x, centre, scale = standardised(features)
    targets = torch.from_numpy(labels)
    shares = np.ones(len(labels)) if weights is None else weights
    share = torch.from_numpy(shares / shares.sum())
    width = x.shape[1]

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        table = torch.from_numpy(flat).view(classes, width + 1)
        weight, bias = table[:, :width], table[:, width]
        narrow = weight.float().T
        loss = penalty / 2 * weight.square().sum()
        gradient = torch.zeros_like(table)
        gradient[:, :width] = penalty * weight
        for at in range(0, len(x), _ROWS):
            block = slice(at, at + _ROWS)
            rows, is_in, part = x[block], targets[block], share[block]
            log_p = ((rows @ narrow).double() + bias).log_softmax(dim=1)
            loss = loss + nll_loss(log_p, is_in, reduction="none") @ part
            residual = log_p.exp_()
            residual[torch.arange(len(is_in)), is_in] -= 1
            residual *= part[:, None]
            gradient[:, :width] += residual.float().T @ rows
            gradient[:, width] += residual.sum(dim=0)
        return float(loss), gradient.view(-1).numpy()

    table = np.zeros((classes, width + 1))
    if start is not None:
        table[:, :width] = start.weight * scale
        table[:, width] = start.bias + start.weight @ centre
    result = minimize(
        objective,
        table.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "ftol": tolerance, "gtol": 1e-6},
    )
    table = result.x.reshape(classes, width + 1)
    weight = table[:, :width] / scale
    return Head(weight=weight, bias=table[:, width] - weight @ centre)


@one_blas_thread()
def fit_probe(
    features: Floats,
    labels: Ints,
    classes: int,
    generator: np.random.Generator,
    penalties: Sequence[float] = PENALTIES,
    weights: Floats | None = None,
    solve: Solver = fit_head,
    units: Ints | None = None,
    advance: Advance = lambda done, note: None,
) -> Probe:
    """The head with the penalty of lowest out-of-fold loss, fitted to all photos.

    `penalties`: from strong to weak. The search goes from the middle to where the loss falls, and
    ends where it rises again.
    features [n, views, F]: the views of a photo stay in one fold, and are all trained on; judged is
    the first, which is what the server sees. labels [n]. weights [n]: of the photos in the loss
    that is lowered, and in that which chooses the penalty; None for equal ones. units [n]: of
    photos that stay in one fold, as those of one scene must; None for each by itself.

    Where there are fewer rows than columns, fit_head works in the space that the rows span: the
    penalised weights lie in it, so the heads are the same, and each step costs less. Other solvers
    may depend on the axes.

    advance: told of each head that is fitted or need not be, MOST_FITS with the usual penalties.
    """
    views = features.shape[1]
    shares = np.ones(len(labels)) if weights is None else weights
    basis = _span(_rows(features)) if solve is fit_head else None
    features = features @ basis if basis is not None else features
    folds = stratified_folds(labels, _FOLDS, generator, units)
    heads: list[Head | None] = [None] * _FOLDS
    left = len(penalties) * _FOLDS + 1

    def judge(penalty: float) -> tuple[float, Floats]:
        """Out of fold: the loss, and the logits [n, K]."""
        nonlocal left
        logits = np.empty((len(labels), classes))
        for fold in range(_FOLDS):
            rest, held = folds != fold, folds == fold
            rows, targets = _rows(features[rest]), np.repeat(labels[rest], views)
            each = np.repeat(shares[rest], views)
            head = solve(rows, targets, classes, penalty, heads[fold], _ROUGH, each)
            logits[held] = head.logits(features[held, 0])
            heads[fold] = head
            advance(1, "")
            left -= 1
        loss = nll(logits, labels, shares)
        return loss if math.isfinite(loss) else math.inf, logits  # of steps that ran away

    middle = len(penalties) // 2
    best_penalty = penalties[middle]
    best_loss, best_logits = judge(best_penalty)
    for direction in (penalties[middle + 1 :], penalties[:middle][::-1]):
        for penalty in direction:
            loss, logits = judge(penalty)
            if loss >= best_loss:  # the loss has one minimum along the path of penalties
                break
            best_loss, best_penalty, best_logits = loss, penalty, logits
        if best_penalty != penalties[middle]:
            break
    rows, targets, each = _rows(features), np.repeat(labels, views), np.repeat(shares, views)
    head = solve(rows, targets, classes, best_penalty, weights=each)
    advance(left, "")
    if basis is not None:
        head = Head(weight=head.weight @ basis.T, bias=head.bias)
    return Probe(penalty=best_penalty, head=head, out_of_fold=best_logits)


def _span(rows: Floats) -> Floats | None:
    """Orthonormal columns [F, n] whose span holds `rows` [n, F]; None where n is not below F."""
    count, width = rows.shape
    return np.linalg.qr(rows.T).Q if count < width else None


def _rows(features: Floats) -> Floats:
    return features.reshape(-1, features.shape[-1])

"""From which probability on an answer may be believed, and what strange pictures get."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.analysis.selective import DELTA, auroc, photos_needed, rounded_down, threshold_for
from trainer.metrics import Bools, Floats

ACCURACIES = (0.9, 0.95, 0.99)
USUAL = 0.95  # share of photos that are answered, for what strangers pass then
_GRID = np.linspace(0, 1, 101)  # probabilities of the curves


def trust_section(served: Floats, right: Bools, strangers: Mapping[str, Floats]) -> dict[str, Any]:
    """served: [n, K] probabilities of the photos as they are; right [n]; strangers: of each kind,
    [m, K]. How they are told from photos is as in Hendrycks & Gimpel 2017, arXiv:1610.02136: by the
    highest probability, and how many pass where 95 % of photos do."""
    sure = served.max(axis=1)
    said = {kind: scores.max(axis=1) for kind, scores in strangers.items()}
    usual = rounded_down(float(np.quantile(sure, 1 - USUAL, method="lower")))
    return {
        "confidence": 1 - DELTA,
        "photos": len(sure),
        "thresholds": [_threshold(sure, right, accuracy) for accuracy in ACCURACIES],
        "usual": {"share": USUAL, "threshold": usual},
        "strangers": [
            {
                "kind": kind,
                "pictures": len(values),
                "median": float(np.median(values)),
                "auroc": auroc(sure, values),
                "answered": float(np.mean(values >= usual)),
            }
            for kind, values in said.items()
        ],
        "curves": {
            "probability": _GRID.tolist(),
            "right": _at_least(sure[right]),
            "wrong": _at_least(sure[~right]),
            **{kind: _at_least(values) for kind, values in said.items()},
        },
    }


def _threshold(sure: Floats, right: Bools, accuracy: float) -> dict[str, Any]:
    found = threshold_for(sure, right, accuracy)
    return {
        "accuracy": accuracy,
        "threshold": None if found is None else found.value,
        "answered": None if found is None else found.answered / len(sure),
        "measured": None if found is None else found.correct / found.answered,
        "needed": photos_needed(accuracy),
    }


def _at_least(values: Floats) -> list[float] | None:
    """The share of `values` that reach each probability of the grid; None if there are none."""
    return [float(np.mean(values >= p)) for p in _GRID] if len(values) else None

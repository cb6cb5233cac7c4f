"""From which probability on an answer may be believed, and what strange pictures get."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.modelspec import Familiarity
from trainer.analysis.photos import Photos
from trainer.analysis.selective import DELTA, auroc, photos_needed, rounded_down, threshold_for
from trainer.analysis.subject import Subject
from trainer.analysis.workspace import Piece
from trainer.metrics import Bools, Floats

ACCURACIES = (0.9, 0.95, 0.99)
USUAL = 0.95  # share of photos that are answered, for what strangers pass then
_MOST_PHOTOS = 2_000  # of which 1,991 right ones show 99 %
_MOST_BYTES = 1 << 30  # of their pixels
_GRID = np.linspace(0, 1, 101)  # probabilities of the curves


def most_photos(size: int) -> int:
    """How many photos of `size` pixels a side are looked at: unlike those that are attacked they
    cost an answer each, and many are needed to show much."""
    return min(_MOST_PHOTOS, _MOST_BYTES // (3 * size * size))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the served files say of photos as they are."""

    served: Mapping[str, Floats]  # by precision, fp32 first: probabilities [n, K]
    familiarity: Floats | None = None  # [n], by the fp32 file
    labels: npt.NDArray[np.int64]  # [n]
    alike: int = 0  # photos beside these, of the same pictures
    known: int = 0  # of these, photos that the version was trained on, it seems

    @classmethod
    def of(cls, subject: Subject, photos: Photos) -> "Answers":
        told = {name: subject.outputs(name, photos.pixels) for name in subject.precisions}
        return cls(
            served={name: outputs[0] for name, outputs in told.items()},
            familiarity=None if subject.familiarity is None else told["fp32"][2][:, 0],
            labels=photos.labels,
            alike=photos.alike,
            known=photos.known,
        )

    def sure_and_right(self, precision: str) -> tuple[Floats, Bools]:
        """[n] each: the probability of the first label, and whether it is right."""
        scores = self.served[precision]
        return scores.max(axis=1), scores.argmax(axis=1) == self.labels


def trust_section(
    answers: Answers,
    strangers: Mapping[str, Floats],
    told: Familiarity | None = None,
    familiarities: Mapping[str, Floats] | None = None,
) -> dict[str, Any]:
    """answers: of photos whose classes have the shares that they have among callers'; strangers: of
    each kind, [m, K] by the fp32 file; told: what the familiarity of the version means, if it has
    one; familiarities: of each kind of strangers, [m]. How they are told from photos is as in
    Hendrycks & Gimpel 2017, arXiv:1610.02136: by the highest probability, and how many pass where
    95 % of photos do; and by the familiarity.
    """
    sure, right = answers.sure_and_right("fp32")
    said = {kind: scores.max(axis=1) for kind, scores in strangers.items()}
    usual = rounded_down(float(np.quantile(sure, 1 - USUAL, method="lower")))
    return {
        "confidence": 1 - DELTA,
        "photos": len(sure),
        "alike": answers.alike,
        "known": answers.known,
        "thresholds": [
            {
                "precision": precision,
                **_threshold(*answers.sure_and_right(precision), accuracy),
            }
            for precision in answers.served
            for accuracy in ACCURACIES
        ],
        "familiarity": None
        if told is None or answers.familiarity is None
        else {
            "photos": told.photos,
            "threshold": told.threshold,
            "unfamiliar": told.share(answers.familiarity.tolist()),
        },
        "usual": {"share": USUAL, "threshold": usual},
        "strangers": [
            {
                "kind": kind,
                "pictures": len(values),
                "median": float(np.median(values)),
                "auroc": auroc(sure, values),
                "answered": float(np.mean(values >= usual)),
                **_unfamiliar(told, answers.familiarity, (familiarities or {}).get(kind)),
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


def attacked_section(
    told: Familiarity, pieces: Mapping[str, Piece], labels: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """How many of the images that attacks made are unfamiliar: of those that turned the served fp32
    from `labels` [n]. pieces: by what made them, as `sweep.smallest` and its like return them."""
    section = []
    for attack, piece in pieces.items():
        turned = piece["served"][0].argmax(axis=1) != labels
        of_turned = piece["familiarity"][turned].tolist()
        section.append(
            {
                "attack": attack,
                "images": len(of_turned),
                "unfamiliar": told.share(of_turned) if of_turned else None,
            }
        )
    return section


def _threshold(sure: Floats, right: Bools, accuracy: float) -> dict[str, Any]:
    found = threshold_for(sure, right, accuracy)
    return {
        "accuracy": accuracy,
        "threshold": None if found is None else found.value,
        "answered": None if found is None else found.answered / len(sure),
        "measured": None if found is None else found.correct / found.answered,
        "needed": photos_needed(accuracy),
    }


def _unfamiliar(
    told: Familiarity | None, of_photos: Floats | None, of_strangers: Floats | None
) -> dict[str, float | None]:
    """Share of the strangers that are unfamiliar, and how well that tells them from photos."""
    if told is None or of_photos is None or of_strangers is None:
        return {"unfamiliar": None, "familiarity_auroc": None}
    return {
        "unfamiliar": told.share(of_strangers.tolist()),
        "familiarity_auroc": auroc(of_photos, of_strangers),
    }


def _at_least(values: Floats) -> list[float] | None:
    """The share of `values` that reach each probability of the grid; None if there are none."""
    return [float(np.mean(values >= p)) for p in _GRID] if len(values) else None

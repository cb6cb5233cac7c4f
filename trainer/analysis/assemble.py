"""From the finished pieces of an analysis to the figures of report.json. No model is run here."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.analysis.photos import Photos
from trainer.analysis.robustness import proportion, size_of, worst_case
from trainer.analysis.settings import REFERENCE_EPSILON, Budget
from trainer.analysis.sweep import Plan
from trainer.analysis.workspace import Piece
from trainer.metrics import Bools, Floats, confusion_matrix, expected_calibration_error, reliability

_SAME = 1e-9  # sizes that differ by less are the same


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What the version says of the photos as they are."""

    served: npt.NDArray[np.float32]  # [V, n, K] probabilities
    torched: npt.NDArray[np.float32]  # [n, K]
    labels: npt.NDArray[np.int64]  # [n]

    @property
    def right(self) -> Bools:
        """[n]: the served fp32 is right; only these are attacked."""
        result: Bools = self.served[0].argmax(axis=1) == self.labels
        return result


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """One attack on the photos that are right, in their order; the arrays are those of `sweep`."""

    plan: Plan
    piece: Piece
    targets: npt.NDArray[np.int64]  # [right]
    seconds: float

    def stands(self, clean: Clean, e: int, precision: int | None) -> Bools:
        """[n]: the photo was right and the attack did not reach its own goal at epsilon e.

        precision: index of the served file, or None for PyTorch's own verdict.
        """
        said = self.said(e, precision)
        labels = clean.labels[clean.right]
        return spread(said != self.targets if self.plan.targeted else said == labels, clean.right)

    def harmless(self, clean: Clean, e: int) -> Bools:
        """[n]: the photo was right and still is: it was not led to any other class either."""
        return spread(self.said(e) == clean.labels[clean.right], clean.right)

    def said(self, e: int, precision: int | None = 0) -> npt.NDArray[np.int64]:
        """[right]: the first label at epsilon e."""
        scores = self.piece["torch"][e] if precision is None else self.piece["served"][e, precision]
        result: npt.NDArray[np.int64] = scores.argmax(axis=1)
        return result


def spread(values: Bools, right: Bools) -> Bools:
    """[n] from [right]; False for the photos that were wrong from the start."""
    result = np.zeros(len(right), bool)
    result[right] = values
    return result


def clean_section(clean: Clean, precisions: Sequence[str]) -> dict[str, Any]:
    """Accuracy, NLL and ECE of each precision, and of PyTorch."""
    scores = {**dict(zip(precisions, clean.served, strict=True)), "torch": clean.torched}
    return {
        name: {
            **proportion(p.argmax(axis=1) == clean.labels),
            "ece": expected_calibration_error(p, clean.labels),
            "nll": _nll(p, clean.labels),
        }
        for name, p in scores.items()
    }


def _nll(probabilities: Floats, labels: npt.NDArray[np.int64]) -> float:
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(own, 1e-12))))


def attack_section(attacked: Attacked, clean: Clean, precisions: Sequence[str]) -> dict[str, Any]:
    plan = attacked.plan
    return {
        "key": plan.key,
        "name": plan.name,
        "norm": plan.norm,
        "goal": "targeted" if plan.targeted else "untargeted",
        "knowledge": "white-box" if plan.white_box else "black-box",
        "source": plan.source,
        "setting": plan.setting,
        "seconds": attacked.seconds,
        "points": _points(plan.epsilons, precisions, partial(attacked.stands, clean)),
    }


def _points(
    epsilons: Sequence[float],
    precisions: Sequence[str],
    stands: Callable[[int, int | None], Bools],
) -> list[dict[str, Any]]:
    """stands: index of an epsilon and of a served file (None: PyTorch) -> [n]."""
    return [
        {
            "epsilon": epsilon,
            **proportion(stands(e, 0)),
            "torch_accuracy": float(stands(e, None).mean()),
            "by_precision": {name: float(stands(e, v).mean()) for v, name in enumerate(precisions)},
        }
        for e, epsilon in enumerate(epsilons)
    ]


def smallest_as_attack(
    norm: str,
    piece: Piece,
    clean: Clean,
    epsilons: Sequence[float],
    precisions: Sequence[str],
    source: str,
) -> dict[str, Any]:
    """The search for the smallest perturbation, told as attack_section tells an attack."""
    labels = clean.labels[clean.right]

    def stands(e: int, precision: int | None) -> Bools:
        """[n]: of the smallest perturbation that turns the served fp32."""
        scores = piece["torch"] if precision is None else piece["served"][precision]
        turned = (piece["size"] <= epsilons[e] + _SAME) & (scores.argmax(axis=1) != labels)
        return spread(~turned, clean.right)

    return {
        "key": f"smallest-{norm}",
        "name": "smallest",
        "norm": norm,
        "goal": "untargeted",
        "knowledge": "white-box",
        "source": source,
        "setting": "the smallest perturbation found, if it lies within epsilon",
        "seconds": float(piece["seconds"]),
        "points": _points(epsilons, precisions, stands),
    }


def left_standing(
    attacks: Sequence[Attacked], clean: Clean, smallest: Mapping[str, Piece], norm: str, e: int
) -> dict[str, Bools]:
    """Attack -> [n]: which photos it leaves right at the e-th epsilon of a norm, and at all before:
    a picture within a smaller ball lies within the larger one, though the attack may do worse
    there."""
    chosen = [a for a in attacks if a.plan.norm == norm]
    result = {
        a.plan.key: worst_case([a.harmless(clean, smaller) for smaller in range(e + 1)])
        for a in chosen
    }
    if norm in smallest:
        within = smallest[norm]["size"] <= chosen[0].plan.epsilons[e] + _SAME
        result[f"smallest-{norm}"] = spread(~within, clean.right)
    return result


def worst_section(
    attacks: Sequence[Attacked], clean: Clean, smallest: Mapping[str, Piece]
) -> dict[str, list[dict[str, Any]]]:
    """norm -> points: a photo counts as robust if no attack turned it, image by image."""
    section: dict[str, list[dict[str, Any]]] = {}
    for norm in sorted({a.plan.norm for a in attacks}, reverse=True):  # linf first
        epsilons = next(a.plan.epsilons for a in attacks if a.plan.norm == norm)
        section[norm] = [
            {
                "epsilon": epsilon,
                **proportion(
                    worst_case([*left_standing(attacks, clean, smallest, norm, e).values()])
                ),
            }
            for e, epsilon in enumerate(epsilons)
        ]
    return section


def nearest(
    piece: Piece, attacks: Sequence[Attacked], norm: str, pictures: npt.NDArray[np.uint8]
) -> Piece:
    """`piece`, the search for the smallest perturbations, with what other attacks of the norm found
    where that is smaller; pictures: uint8 [right, S, S, 3], as they are."""
    result = {
        key: piece[key].copy()
        for key in ("size", "adversarial", "served", "torch", "float_size", "survived")
    }
    for attack in (a for a in attacks if a.plan.norm == norm):
        for i in np.flatnonzero(attack.piece["turned_at"] < len(attack.plan.epsilons)):
            e, found = attack.piece["turned_at"][i], attack.piece["adversarial"][i]
            linf, l2 = size_of(pictures[i], found)
            size = linf if norm == "linf" else l2
            if size < result["size"][i]:
                result["size"][i], result["adversarial"][i] = size, found
                result["served"][:, i] = attack.piece["served"][e, :, i]
                result["torch"][i] = attack.piece["torch"][e, i]
    return result


def smallest_section(
    smallest: Mapping[str, Piece], attack: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    section = {}
    for norm, piece in smallest.items():
        sizes = piece["size"]
        middle = float(np.median(sizes))
        section[norm] = {
            "attack": f"{attack[norm]}, or what another attack found if it is smaller",
            "found": [float(size) for size in np.sort(sizes[np.isfinite(sizes)])],
            "not_found": int(np.sum(~np.isfinite(sizes))),
            "median": middle if np.isfinite(middle) else None,
            "fooled_in_float": float(np.isfinite(piece["float_size"]).mean()),
            "fooled_after_plain_rounding": float(piece["survived"].mean()),
        }
    return section


def descent_section(
    lesson: Piece, targets: npt.NDArray[np.int64], budget: Budget
) -> dict[str, Any]:
    """The lesson's plain descent, which knows no ball: how often it arrives, and how far away."""
    reached = lesson["served"][0].argmax(axis=1) == targets
    return {
        "steps": budget.lesson_steps,
        "reached": proportion(reached),
        "torch_reached": float((lesson["torch"].argmax(axis=1) == targets).mean()),
        "median_linf": float(np.median(lesson["linf"][reached])) if reached.any() else None,
        "median_l2": float(np.median(lesson["l2"][reached])) if reached.any() else None,
    }


def agreement(clean: Clean, attacked: Sequence[Attacked]) -> dict[str, float]:
    """How far the served fp32 and PyTorch say the same of all pictures that were made."""
    same = [
        (a.said(e) == a.said(e, None)).mean() for a in attacked for e in range(len(a.plan.epsilons))
    ]
    return {
        "agreement": float(np.mean(same)),
        "largest_difference": float(np.abs(clean.served[0] - clean.torched).max()),
    }


def outcome_at_reference(
    attacks: Sequence[Attacked], clean: Clean, smallest: Mapping[str, Piece]
) -> npt.NDArray[np.int64]:
    """[n]: what each photo is taken for within the reference epsilon: by the first attack to turn
    it, at the largest size at which it does, or by its smallest perturbation. Those that are wrong
    as they are stay what they are taken for then."""
    said: npt.NDArray[np.int64] = clean.served[0].argmax(axis=1)
    stands, rows = clean.right.copy(), np.cumsum(clean.right) - 1

    def turn(turned: Bools, to: npt.NDArray[np.int64]) -> None:
        """turned: [n]; to: [right]."""
        first = turned & stands
        said[first] = to[rows[first]]
        stands[first] = False

    for attack in (a for a in attacks if a.plan.norm == "linf"):
        for e in range(attack.plan.epsilons.index(REFERENCE_EPSILON), -1, -1):
            turn(~attack.harmless(clean, e), attack.said(e))
    if "linf" in smallest:
        within = smallest["linf"]["size"] <= REFERENCE_EPSILON + _SAME
        turn(spread(within, clean.right), smallest["linf"]["served"][0].argmax(axis=1))
    return said


def class_section(
    clean: Clean,
    robust: Bools,
    outcome: npt.NDArray[np.int64],
    corrupted: Floats,
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """corrupted: [n] share of the corruptions under which each photo stays right."""
    rows = []
    for k, label in enumerate(labels):
        own = clean.labels == k
        if not own.any():
            continue
        elsewhere = Counter(int(o) for o in outcome[own & clean.right] if o != k)
        rows.append(
            {
                "label": label,
                "photos": int(own.sum()),
                "clean": float(clean.right[own].mean()),
                "robust": float(robust[own].mean()),
                "corrupted": float(corrupted[own].mean()),
                "leads_to": labels[elsewhere.most_common(1)[0][0]] if elsewhere else None,
            }
        )
    return rows


def corruption_section(
    pieces: Mapping[str, Piece], clean: Clean, source: str
) -> tuple[dict[str, Any], Floats]:
    """(section, [n] share of corruptions survived); piece: `served` float32 [5, n, K]."""
    right = {kind: piece["served"].argmax(axis=2) == clean.labels for kind, piece in pieces.items()}
    # Of all verdicts at once: a mean of means may end just below a gate that it meets.
    mean = float(np.mean(list(right.values())))
    section = {
        "source": source,
        "kinds": [
            {"kind": kind, "accuracy": [float(x) for x in r.mean(axis=1)], "mean": float(r.mean())}
            for kind, r in right.items()
        ],
        "mean_accuracy": mean,
        "drop": float(clean.right.mean()) - mean,
        "examples": [],
    }
    return section, np.mean([r.mean(axis=0) for r in right.values()], axis=0)


def calibration_section(clean: Clean, surest: Piece) -> dict[str, Any]:
    """Reliability on the photos as they are, and on what `sweep.surest` made of them."""
    scores = clean.served[0].copy()
    scores[clean.right] = surest["served"][0]
    return {
        "clean": _reliability(clean.served[0], clean.labels),
        "attacked": _reliability(scores, clean.labels),
    }


def _reliability(probabilities: Floats, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    counts, confidence, accuracy = reliability(probabilities, labels)
    bins = len(counts)
    return {
        "ece": expected_calibration_error(probabilities, labels),
        "bins": [
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "count": int(counts[b]),
                "confidence": float(confidence[b]),
                "accuracy": float(accuracy[b]),
            }
            for b in range(bins)
        ],
    }


def confusion_section(
    clean: Clean, outcome: npt.NDArray[np.int64], labels: Sequence[str]
) -> dict[str, Any]:
    """Of the photos that are right as they are: no attack led the others anywhere."""
    attacked = clean.right
    matrix = confusion_matrix(outcome[attacked], clean.labels[attacked], len(labels))
    return {"epsilon": REFERENCE_EPSILON, "matrix": matrix.tolist()}


def data_section(photos: Photos, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "folder": photos.folder,
        "digest": photos.digest,
        "photos": len(photos.labels),
        "per_class": {label: int(np.sum(photos.labels == k)) for k, label in enumerate(labels)},
        "left_out": [{"file": item.file, "reason": item.reason} for item in photos.left_out],
        "known": photos.known,
    }

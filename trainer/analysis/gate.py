"""Conditions that a version must meet, for use in a pipeline: --fail-under "pgd@4/255=0.2"."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import InvalidRequest
from trainer.analysis.plans import plans
from trainer.analysis.settings import Budget, k255, read_epsilon
from trainer.analysis.trust import ACCURACIES

WORST = "worst"
BELIEVED = "believed"
CHANGE = "change"
UNFAMILIAR = "unfamiliar"
_WITHOUT_SIZE = ("clean", "corruptions", UNFAMILIAR, CHANGE)
_CONDITION = re.compile(r"(?P<what>[a-z0-9-]+)(@(?P<at>[0-9./]+))?=(?P<least>-?[0-9.]+)")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """`what` at `at` must be at least `least`."""

    text: str
    what: str
    at: float | None  # epsilon; of `believed` the accuracy; None for _WITHOUT_SIZE
    least: float


def parse_condition(text: str) -> Condition:
    """`clean=0.9`, `corruptions=0.6`, `pgd@4/255=0.2`, `worst@4/255=0.1`, `pgd-l2@0.5=0.3`; and
    `believed@0.95=0.8`: 80 % of photos get an answer of those of which 95 % are right; and
    `unfamiliar=0.9`: so many strange pictures of each kind are unfamiliar. Of two versions
    `change=-0.02`: the second's accuracy is at most two points below the first's.

    Raises InvalidRequest.
    """
    match = _CONDITION.fullmatch(text.replace(" ", ""))
    try:
        if match is None:
            raise ValueError
        at = read_epsilon(match["at"]) if match["at"] else None
        least = float(match["least"])
        whole = match["what"] in _WITHOUT_SIZE
        lowest = -1 if match["what"] == CHANGE else 0
        if not lowest <= least <= 1 or (at is None) != whole or at == 0:
            raise ValueError
    except ValueError as error:
        raise InvalidRequest(
            "expected ATTACK@EPSILON=ACCURACY, clean=ACCURACY, corruptions=ACCURACY, "
            "believed@ACCURACY=SHARE, unfamiliar=SHARE or, with --compare, change=POINTS, such as "
            f"pgd@4/255=0.2 or change=-0.02; got {text!r}"
        ) from error
    return Condition(text=text, what=match["what"], at=at, least=least)


def check(condition: Condition, budget: Budget) -> None:
    """Raises InvalidRequest if an analysis of this budget does not measure it."""
    if condition.what == CHANGE:
        raise InvalidRequest(f"{condition.text!r} is of two versions: give them by --compare")
    if condition.what == BELIEVED:
        _tried(ACCURACIES, condition)
        return
    sizes = {plan.key: plan.epsilons for plan in plans(budget)}
    for of_norm in ("smallest", WORST):
        sizes |= {f"{of_norm}-{plan.norm}": plan.epsilons for plan in plans(budget)}
    _find(sizes, condition)


def measured(report: Mapping[str, Any], condition: Condition) -> float:
    """The share that a condition speaks of. Raises InvalidRequest if it was not measured."""
    if condition.what == CHANGE:  # what the photos show, so that few of them open no gate
        return float(report["paired"]["low"])
    if condition.what == "clean":
        return float(report["clean"]["fp32"]["accuracy"])
    if condition.what == "corruptions":
        return float(report["corruptions"]["mean_accuracy"])
    if condition.what == UNFAMILIAR:  # of a version that can't tell, none is
        return float(min(row["unfamiliar"] or 0 for row in report["trust"]["strangers"]))
    if condition.what == BELIEVED:
        rows = [row for row in report["trust"]["thresholds"] if row["precision"] == "fp32"]
        return float(rows[_tried([row["accuracy"] for row in rows], condition)]["answered"] or 0)
    curves = {attack["key"]: attack["points"] for attack in report["attacks"]}
    curves |= {f"{WORST}-{norm}": points for norm, points in report["worst_case"].items()}
    sizes = {name: [point["epsilon"] for point in points] for name, points in curves.items()}
    name, e = _find(sizes, condition)
    return float(curves[name][e]["accuracy"])


def _tried(accuracies: Sequence[float], condition: Condition) -> int:
    """The index of its accuracy. Raises InvalidRequest."""
    for i, accuracy in enumerate(accuracies):
        if abs(accuracy - (condition.at or 0)) < 1e-6:
            return i
    raise InvalidRequest(
        f"the accuracy of {condition.text!r} is not tried; {', '.join(map(str, accuracies))} are"
    )


def _find(sizes: Mapping[str, Sequence[float]], condition: Condition) -> tuple[str, int]:
    """The attack and the index of its epsilon, of all that are measured; ("", 0) where the
    condition speaks of none. Raises InvalidRequest."""
    if condition.at is None:
        return "", 0
    name = condition.what if condition.what in sizes else f"{condition.what}-linf"
    if name not in sizes:
        near = difflib.get_close_matches(condition.what, sizes, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidRequest(
            f"no attack {condition.what!r} in the report; {hint}there are {', '.join(sizes)}"
        )
    for e, epsilon in enumerate(sizes[name]):
        if abs(epsilon - condition.at) < 1e-6:
            return name, e
    l2 = "-l2" in name
    unit = (lambda e: f"{e:.10g}") if l2 else k255  # to be given so
    wanted = ",".join(map(unit, sorted({*sizes[name], condition.at})))
    raise InvalidRequest(
        f"{name} is not measured at the epsilon of {condition.text!r}, but at "
        f"{', '.join(map(unit, sizes[name]))}; add {'--l2' if l2 else '--linf'} {wanted}"
    )

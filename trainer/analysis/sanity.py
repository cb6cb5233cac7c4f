"""Checks that would expose a wrong evaluation.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705, section 4 and
appendix A), and Tramer et al. 2020 (arXiv:2002.08347).

Each check reads figures that were measured; None means that it does not apply.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.percent import percent
from trainer.analysis.report import NORMS, epsilon_text
from trainer.analysis.settings import REFERENCE_EPSILON, k255

_NOTHING = 0.05  # accuracy that counts as none
_SLACK = 0.05  # by how much a figure may move with more steps and restarts
_AGREEMENT = 0.99
_DIFFERENCE = 0.01  # of a probability; the parity test of a version allows far less


def check_all(report: Mapping[str, Any], probe: Mapping[str, float]) -> list[dict[str, Any]]:
    """report: the sections measured. probe: the figures of `trainer.analysis.probes`."""
    curves = {attack["key"]: attack["points"] for attack in report["attacks"]}
    return [
        _huge(probe),
        _iterated(curves),
        _black_box(report["attacks"]),
        _converged(probe),
        _gradient(probe),
        _agreement(probe),
        _noise(probe),
        _undefended(report),
    ]


def _check(name: str, passed: bool | None, finding: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "finding": finding}


def _huge(probe: Mapping[str, float]) -> dict[str, Any]:
    left = probe["huge_accuracy"]
    return _check(
        "A large perturbation leaves nothing",
        left <= _NOTHING,
        f"At {k255(probe['huge_epsilon'])} the attack leaves {percent(left)} of the photos right. "
        f"More than {percent(_NOTHING)} means that it can't find what must be there.",
    )


def _iterated(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    worse = [
        f"{percent(many['accuracy'])} against {percent(one['accuracy'])} at "
        f"{NORMS[norm]} {epsilon_text(one['epsilon'], norm)}"
        for norm in NORMS
        for one, many in zip(curves[f"fgsm-{norm}"], curves[f"pgd-{norm}"], strict=True)
        if many["correct"] > one["correct"]
    ]
    return _check(
        "Many steps are at least as strong as one",
        not worse,
        f"PGD leaves more photos right than FGSM: {'; '.join(worse)}."
        if worse
        else "At every size PGD leaves no more photos right than FGSM.",
    )


def _black_box(attacks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = []
    for black in (a for a in attacks if a["knowledge"] == "black-box"):
        white = [
            a["points"]
            for a in attacks
            if a["knowledge"] == "white-box"
            and a["norm"] == black["norm"]
            and a["goal"] == "untargeted"
        ]
        for e, point in enumerate(black["points"]):
            best = min(points[e]["correct"] for points in white)
            if point["correct"] < best:
                found.append(
                    f"{percent(point['accuracy'])} against {percent(best / point['photos'])} "
                    f"at {NORMS[black['norm']]} {epsilon_text(point['epsilon'], black['norm'])}"
                )
    return _check(
        "An attack without gradients is no stronger than those with them",
        not found,
        f"Square leaves fewer photos right: {'; '.join(found)}. The gradients are masked: trust "
        "the lower figure."
        if found
        else "At no size does Square leave fewer photos right than the strongest white-box attack.",
    )


def _converged(probe: Mapping[str, float]) -> dict[str, Any]:
    usual, more = probe["usual_accuracy"], probe["more_accuracy"]
    slack = max(_SLACK, 1 / probe["photos"])  # of few photos a single one is no evidence
    return _check(
        "More steps and restarts change little",
        abs(usual - more) <= slack + 1e-9,  # nor may more be weaker
        f"PGD with {probe['more_factor']:.0f} times the steps and more restarts leaves "
        f"{percent(more)} right, and with the usual ones {percent(usual)} "
        f"({probe['photos']:.0f} photos, {k255(REFERENCE_EPSILON)}).",
    )


def _gradient(probe: Mapping[str, float]) -> dict[str, Any]:
    margin, entropy = probe["zero_margin_gradients"], probe["zero_entropy_gradients"]
    finding = (
        f"The gradient of the margin is zero or no number for {percent(margin)} of the photos, "
        f"that of the cross-entropy for {percent(entropy)}."
    )
    return _check("The gradient is not zero", margin == 0 and entropy <= _SLACK, finding)


def _agreement(probe: Mapping[str, float]) -> dict[str, Any]:
    return _check(
        "The served file agrees with PyTorch",
        probe["agreement"] >= _AGREEMENT and probe["largest_difference"] <= _DIFFERENCE,
        f"Same first label for {percent(probe['agreement'])} of all attacked pictures; largest "
        f"difference of a probability on clean photos {probe['largest_difference']:.1e}.",
    )


def _noise(probe: Mapping[str, float]) -> dict[str, Any]:
    lost, attacked = 1 - probe["noise_accuracy"], 1 - probe["usual_accuracy"]
    passed = None if attacked == lost == 0 else lost <= attacked / 2
    return _check(
        "Noise of the same size is far weaker than the attack",
        passed,
        f"Random signs of {k255(REFERENCE_EPSILON)} turn {percent(lost)} of the photos, the attack "
        f"{percent(attacked)}.",
    )


def _undefended(report: Mapping[str, Any]) -> dict[str, Any]:
    name, model = "An undefended net has nothing left", report["model"]
    points = report["worst_case"]["linf"]
    point = next(p for p in points if p["epsilon"] == REFERENCE_EPSILON)
    # Of those that were attacked: of all photos a net that is seldom right leaves little anyway.
    kept = point["correct"] / report["clean"]["fp32"]["correct"]
    left = f"At {k255(REFERENCE_EPSILON)} {percent(kept)} of the photos that were right are left"
    if model["defence"] != "none":
        return _check(name, None, f"{left}; this one is defended: {model['defence']}.")
    if not model["pretrained"] and kept > _NOTHING:
        return _check(
            name, None, f"{left}; a net trained from scratch on pictures that are easy to tell "
            "apart may keep some, so only the checks above count."
        )  # fmt: skip
    if kept <= _NOTHING:
        return _check(name, True, f"{left}, as is usual of a net trained without any defence.")
    return _check(
        name,
        False,
        f"{left}. A net trained without any defence usually falls to about nothing there: either "
        "its classes are easy to tell apart, or its gradients are masked (see the checks above).",
    )

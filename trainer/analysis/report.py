"""report.json to report.html: one file that needs no other, and no network."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy.typing as npt
from jinja2 import Environment, StrictUndefined

from serving.percent import percent
from trainer.analysis import plots
from trainer.analysis.pictures import data_uri
from trainer.analysis.settings import k255

NORMS = {"linf": "L∞", "l2": "L2"}
NAMED = 20  # classes that fall short; how many more there are is said
# Classes that are shown without a box to scroll in, and whose animations are embedded: 110 kB for
# one of 224 px.
MOST_CLASSES = 48


def render(report: Mapping[str, Any], folder: Path) -> str:
    """The page for a report whose pictures lie in `folder`, all embedded."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "percent": percent,
        "interval": lambda p: f"{percent(p['low'])} to {percent(p['high'])}, n = {p['photos']}",
        "below": below,
        "k255": k255,
        "epsilon": epsilon_text,
        "norm": lambda norm: NORMS[norm],
        "duration": duration,
        "threshold": threshold_text,
        "whole": whole,
        "heat": lambda accuracy: f"hsl({round(120 * accuracy)} 55% 86%)",
    }
    clean = report["clean"]["fp32"]
    reference = report["reference"]["epsilon"]
    robust = next(p for p in report["worst_case"]["linf"] if p["epsilon"] == reference)
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        r=report,
        headline={"clean": clean, "robust": robust},
        failed=[check for check in report["sanity"] if check["passed"] is False],
        plots=_plots(report, clean),
        embed=lambda file: data_uri(folder / file),
        named=NAMED,
        most=MOST_CLASSES,
    )


def whole(share: float) -> str:
    """Of shares that were chosen, not measured."""
    return f"{100 * share:g} %"


def threshold_text(threshold: float) -> str:
    """Whole: what was shown is shown of no other."""
    return f"{threshold:.10g}"


def below(drop: float) -> str:
    """A difference of two shares in percentage points, negative where it is a rise."""
    points = round(100 * drop, 1)
    return f"{abs(points)} points {'above' if points < 0 else 'below'}"


def verdict(probabilities: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, Any]:
    """The first label of [K] probabilities, with its own."""
    best = int(probabilities.argmax())
    return {"label": labels[best], "probability": float(probabilities[best])}


def words(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['label']} {percent(verdict['probability'])}"


def epsilon_text(epsilon: float, norm: str) -> str:
    return k255(epsilon) if norm == "linf" else f"{epsilon:.3g}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _plots(report: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, Any]:
    accuracy = {}
    for norm, worst in report["worst_case"].items():
        curves = {
            f"{a['name']} ({a['goal']})" if a["goal"] != "untargeted" else a["name"]: a["points"]
            for a in report["attacks"]
            if a["norm"] == norm
        }
        accuracy[norm] = plots.accuracy_against_epsilon(curves, worst, clean, norm)
    smallest = report["smallest"]
    confusion, left_out = plots.confusion(report["confusion"]["matrix"], report["model"]["labels"])
    return {
        "accuracy": accuracy,
        "smallest": plots.smallest_perturbations(
            {norm: s["found"] for norm, s in smallest.items()},
            max((len(s["found"]) + s["not_found"] for s in smallest.values()), default=0),
        ),
        "confusion": confusion,
        "left_out": left_out,
        "reliability": plots.reliability(report["calibration"]),
        "answered": plots.answered(
            report["trust"]["curves"],
            [
                row["threshold"]
                for row in report["trust"]["thresholds"]
                if row["threshold"] is not None and row["precision"] == "fp32"
            ],
        ),
        "descent": plots.descent({i["label"]: i["curve"] for i in report["ideal"]})
        if report["ideal"]
        else "",
    }

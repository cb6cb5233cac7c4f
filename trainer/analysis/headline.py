"""What `analyze` prints of a report, and of two versions side by side."""

from collections.abc import Iterator
from typing import Any

from serving.errors import listed
from serving.percent import percent
from serving.visible import visible
from trainer.analysis.paired import in_a_sentence
from trainer.analysis.report import NAMED, threshold_text, whole
from trainer.analysis.settings import k255
from trainer.analysis.trust import USUAL


def headline(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "clean": report["clean"]["fp32"]["accuracy"],
        "worst_case": {
            norm: {str(p["epsilon"]): p["accuracy"] for p in points}
            for norm, points in report["worst_case"].items()
        },
        "corruptions": report["corruptions"]["mean_accuracy"],
        "sanity": {check["name"]: check["passed"] for check in report["sanity"]},
    }


def in_words(report: dict[str, Any], folder: str) -> str:
    clean = report["clean"]["fp32"]
    lines = ["sees         each picture and its mirror image"] if report["model"]["mirror"] else []
    lines += [
        f"clean        {percent(clean['accuracy'])} of {clean['photos']} photos "
        f"({percent(clean['low'])} to {percent(clean['high'])})"
    ]
    for norm, points in report["worst_case"].items():
        sizes = ", ".join(
            f"{percent(p['accuracy'])} at "
            + (k255(p["epsilon"]) if norm == "linf" else f"{p['epsilon']:g}")
            for p in points
        )
        lines.append(f"robust, {norm:<4} {sizes} (worst case over attacks)")
    lines.append(f"corruptions  {percent(report['corruptions']['mean_accuracy'])} on average")
    lines.append(f"believed     {_believed(report['trust'])}")
    passing = ", ".join(
        f"{percent(s['answered'])} of {s['kind']}" for s in report["trust"]["strangers"]
    )
    lines.append(f"strangers    {passing} would be answered where {whole(USUAL)} of photos are")
    lines += _unfamiliar(report["trust"])
    if report["ideal"]:
        short = [i["label"] for i in report["ideal"] if not i["reached"]]
        drawn = len(report["ideal"])
        lines.append(
            f"ideal        {drawn - len(short)} of {drawn} reach {percent(report['ideal_goal'])}"
            + (f"; not {listed(short, NAMED)}" if short else "")
        )
    failed = [check["name"] for check in report["sanity"] if check["passed"] is False]
    advice = "; the figures may flatter: see the report, and try a larger --budget"
    said = f"FAILED: {'; '.join(failed)}{advice}" if failed else "all checks pass"
    lines.append(f"sanity       {said}")
    return "\n".join(map(visible, [*lines, f"{folder}/report.html"]))


def _unfamiliar(trust: dict[str, Any]) -> Iterator[str]:
    if trust["familiarity"] is not None:
        seen = ", ".join(f"{percent(s['unfamiliar'])} of {s['kind']}" for s in trust["strangers"])
        of_photos = percent(trust["familiarity"]["unfamiliar"])
        yield f"unfamiliar   {seen}; {of_photos} of the photos"


def _believed(trust: dict[str, Any]) -> str:
    """The threshold for the highest accuracy that is shown, of the fp32 file."""
    rows = [row for row in trust["thresholds"] if row["precision"] == "fp32"]
    shown = [row for row in rows if row["threshold"] is not None]
    if not shown:
        least = whole(rows[0]["accuracy"])
        return f"these photos show no probability from which on {least} of the answers are right"
    best = shown[-1]
    return (
        f"from a probability of {threshold_text(best['threshold'])} on at least "
        f"{whole(best['accuracy'])} of the answers are right; {percent(best['answered'])} of "
        "photos are answered then"
    )


def side_by_side(made: dict[str, Any]) -> str:
    """A line for each of the two versions, and one for the change from the first to the second."""
    lines = []
    for one, row in zip(made["versions"], made["transfer"], strict=True):
        left = ", ".join(
            f"{percent(point['accuracy'])} at {k255(point['epsilon'])}" for point in one["robust"]
        )
        turned = ", ".join(
            f"{percent(share)} in {other['version']}"
            for share, other in zip(row, made["versions"], strict=True)
            if share is not None
        )
        lines.append(
            f"{one['version']}: {'seen both ways; ' if one['mirror'] else ''}"
            f"defence {one['defence']}; clean "
            f"{percent(one['clean']['accuracy'])}; left by PGD {left}; its images at "
            f"{k255(made['epsilon'])} turn {turned or 'no photo: none is right in both'}"
        )
    names = [version["version"] for version in made["versions"]]
    lines.append(f"from {names[0]} to {names[1]}: {in_a_sentence(made['paired'])}")
    return "\n".join(map(visible, lines))

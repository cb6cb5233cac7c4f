"""The plots of a robustness report, each an SVG text to stand in a page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.lettering import any_script, short_label

_CLASSES = 48  # of a confusion matrix that is shown whole
_MOST = 100  # classes of one that is shown in part: of 1,000 it would take 7 GB to draw
_NUMBERED = 12  # classes of one whose cells are numbered
_DRAWN = 8  # curves of their own
_COLOURS = ("#1f6f8b", "#e07a5f", "#3d9970", "#8d6cab", "#c9a227", "#7a7a7a", "#b5476b", "#4c78a8")


def accuracy_against_epsilon(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    worst: Sequence[Mapping[str, Any]],
    clean: Mapping[str, Any],
    norm: str,
) -> str:
    """Accuracy left by each attack and by the worst of them, with its 95 % interval."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.subplots()
    in_pixels = 255 if norm == "linf" else 1
    unattacked = {"epsilon": 0, **clean}
    for k, (name, points) in enumerate(curves.items()):
        x = [p["epsilon"] * in_pixels for p in (unattacked, *points)]
        y = [p["accuracy"] for p in (unattacked, *points)]
        axes.plot(x, y, "o-", ms=3.5, lw=1.3, color=_COLOURS[k % len(_COLOURS)], label=name)
    if worst:
        along = (unattacked, *worst)
        x = [p["epsilon"] * in_pixels for p in along]
        axes.plot(x, [p["accuracy"] for p in along], "k-", lw=2.2, label="worst case")
        axes.fill_between(
            x,
            [p["low"] for p in along],
            [p["high"] for p in along],
            color="k",
            alpha=0.12,
            lw=0,
        )
    axes.set(
        xlabel="epsilon, k/255 (L-infinity)"
        if norm == "linf"
        else "epsilon (L2, pixels in [0, 1])",
        ylabel="accuracy",
        ylim=(-0.03, 1.03),
    )
    return _svg(figure, "accuracy under attack against epsilon", axes)


def smallest_perturbations(found: Mapping[str, Sequence[float]], photos: int) -> str:
    """The share of photos that a perturbation of at most a size turns, by norm."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    panels = figure.subplots(1, max(1, len(found)), squeeze=False)[0]
    for axes, (norm, sizes) in zip(panels, found.items(), strict=False):
        x = np.sort(np.asarray(sizes, float)) * (255 if norm == "linf" else 1)
        axes.step([0, *x], np.arange(len(x) + 1) / max(photos, 1), where="post", color=_COLOURS[0])
        axes.set(
            xlabel="L-infinity, k/255" if norm == "linf" else "L2, pixels in [0, 1]",
            ylabel="share of photos turned",
            ylim=(0, 1.03),
        )
        if norm == "linf":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # whole levels
        axes.grid(alpha=0.25)
    return _svg(figure, "share of photos turned against the size of the perturbation")


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[str, int]:
    """Rows: what is on the photo; columns: where the attack led. Of many classes those are shown
    that most photos leave or reach; the second result is how many are not."""
    counts = np.asarray(matrix)
    shown = np.arange(len(labels))
    if len(labels) > _CLASSES:
        moved = counts - np.diag(np.diag(counts))
        passing = moved.sum(axis=0) + moved.sum(axis=1)
        most = np.argsort(-passing, kind="stable")[:_MOST]
        shown = np.sort(most[passing[most] > 0])
        counts = counts[np.ix_(shown, shown)]
    names = [short_label(labels[int(k)]) for k in shown]
    size = 9 if len(names) <= _NUMBERED else 7
    longest = max(map(len, names), default=0)
    side = max(3.4, 0.6 + (0.3 if len(names) <= _NUMBERED else 0.17) * len(names))
    room = 0.01 * size * longest  # inches that the labels take
    figure = Figure(figsize=(side + room + 1.0, side + room), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts if counts.size else np.zeros((1, 1)), cmap="Blues", vmin=0)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=size, parse_math=False)  # $ is no formula
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set(xlabel="where the attack leads", ylabel="what it is")
    if len(names) <= _NUMBERED:
        for row, col in np.ndindex(*counts.shape):
            dark = counts[row, col] > counts.max() / 2
            axes.text(
                col, row, str(counts[row, col]), ha="center", va="center",
                color="white" if dark else "black", fontsize=9,
            )  # fmt: skip
    else:
        # Above, at the left, where a page that is narrower than the matrix shows it too.
        figure.colorbar(
            image, location="top", anchor=(0, 0), shrink=0.3, aspect=15, pad=0.02,
            label="photos", ticks=MaxNLocator(4, integer=True),
        )  # fmt: skip
    return _svg(figure, "where attacks lead, class by class"), len(labels) - len(names)


def reliability(diagrams: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against confidence, one panel each, with how many photos fell in each bin."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(diagrams), squeeze=False)[0]
    for axes, (name, diagram) in zip(panels, diagrams.items(), strict=True):
        bins = [b for b in diagram["bins"] if b["count"]]
        total = sum(b["count"] for b in bins)
        axes.plot([0, 1], [0, 1], color="#999", lw=1, ls="--")
        axes.bar(
            [b["low"] for b in bins],
            [b["count"] / total for b in bins],
            width=[b["high"] - b["low"] for b in bins],
            align="edge", color="#d6e4ea",
        )  # fmt: skip
        axes.plot(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-",
            ms=4, color=_COLOURS[1], clip_on=False, zorder=3,  # whole at 0 and 1
        )  # fmt: skip
        axes.set(
            title=f"{name}: ECE {diagram['ece']:.3f}", xlabel="confidence", ylabel="accuracy",
            xlim=(0, 1), ylim=(0, 1.02),
        )  # fmt: skip
        axes.title.set_fontsize(10)
    return _svg(figure, "accuracy against confidence, clean and attacked")


def answered(curves: Mapping[str, Sequence[float] | None], thresholds: Sequence[float]) -> str:
    """The share of pictures that get an answer, against the probability that it must have."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    x = curves["probability"]
    assert x is not None
    for k, (name, y) in enumerate(curves.items()):
        if name == "probability" or y is None:
            continue
        style = {"right": "-", "wrong": "--"}.get(name, ":")
        label = f"photos that are {name}" if style != ":" else name
        axes.plot(x, y, style, lw=1.6, color=_COLOURS[(k - 1) % len(_COLOURS)], label=label)
    for threshold in thresholds:
        axes.axvline(threshold, color="#999", lw=0.8)
    axes.set(
        xlabel="an answer must have this probability", ylabel="share that is answered",
        xlim=(0, 1), ylim=(-0.03, 1.03),
    )  # fmt: skip
    return _svg(figure, "share answered against the probability asked for", axes)


def descent(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Probability of the class against the step, for each ideal image; of many the quartiles."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.subplots()
    if len(curves) <= _DRAWN:
        for k, (name, points) in enumerate(curves.items()):
            steps, probabilities = zip(*points, strict=True)
            axes.plot(steps, probabilities, lw=1.2, color=_COLOURS[k], label=short_label(name))
    else:
        every = [np.asarray(points) for points in curves.values()]
        along = np.unique(np.concatenate([points[:, 0] for points in every]))
        low, middle, high = np.quantile(
            [np.interp(along, points[:, 0], points[:, 1]) for points in every],
            (0.25, 0.5, 0.75), axis=0,
        )  # fmt: skip
        axes.fill_between(along, low, high, color=_COLOURS[0], alpha=0.2, lw=0)
        axes.plot(along, middle, lw=1.6, color=_COLOURS[0], label="median")
    axes.set(xlabel="step", ylabel="probability", ylim=(-0.03, 1.03))
    return _svg(figure, "probability of the class against the step", axes)


def _svg(figure: Figure, title: str, axes: Any = None) -> str:
    """title: what a reader who can't see it is told. With `axes`: a grid, and a legend beside."""
    if axes is not None:
        axes.grid(alpha=0.25)
        beside = axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        for text in beside.get_texts():
            text.set_parse_math(False)
    buffer = io.StringIO()
    # Text stays text (small, searchable); no date and a fixed salt make the same figure the same.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pawprint"}),
        any_script(),  # the browser has the letters
    ):
        # The very text of Figure.savefig, which draws all twice for the sake of the layout.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)

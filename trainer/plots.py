"""Pictures of a training run: curves, confusion matrix, reliability diagram."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.figures import save_png
from trainer.lettering import short_label
from trainer.metrics import Floats, Ints, confusion_matrix, expected_calibration_error, reliability
from trainer.mistakes import draw_mistakes, most_wrong
from trainer.pictures import Pixels
from trainer.training import Epoch

_MAX_SIDE = 48.0  # inches of the confusion matrix
_MAX_NAMES = 225  # that have room beside it
_MAX_NUMBERS = 20  # classes up to which each cell of the confusion matrix has its number
_ALSO_ON_VAL = {
    "val_mean_recall": "val, mean recall",
    "val_robust_accuracy": "val, under attack",
    "val_robust_recall": "val, mean recall under attack",
}


def save_plots(
    folder: Path,
    history: Sequence[Epoch],
    probabilities: Floats,
    uncalibrated: Floats,
    targets: Ints,
    labels: Sequence[str],
    pictures_of: Callable[[Ints], Sequence[Pixels]],
) -> None:
    """training.png (where there were epochs), confusion.png, reliability.png and mistakes.png.

    probabilities [n, K], those before the temperature, and targets [n] of the test photos;
    `pictures_of` gives the pixels of some of them. Without mistakes there is no picture of them.
    """
    folder.mkdir()
    if len(history) > 1:
        save_png(draw_training(history), folder / "training.png")
    matrix = confusion_matrix(probabilities.argmax(axis=1), targets, len(labels))
    save_png(draw_confusion(matrix, labels), folder / "confusion.png")
    save_png(draw_reliability(probabilities, uncalibrated, targets), folder / "reliability.png")
    worst = most_wrong(probabilities, targets)
    if len(worst):
        figure = draw_mistakes(pictures_of(worst), probabilities[worst], targets[worst], labels)
        save_png(figure, folder / "mistakes.png")


def draw_training(history: Sequence[Epoch]) -> Figure:
    """Losses, and all by which epochs are chosen."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, right = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    loss.plot(epochs[1:], [e.train_loss for e in history[1:]], "o-", label="train (augmented)")
    loss.plot(epochs, [e.val_loss for e in history], "o-", label="val")
    right.plot(epochs[1:], [e.train_accuracy for e in history[1:]], "o-", label="train (augmented)")
    right.plot(epochs, [e.val_accuracy for e in history], "o-", label="val")
    for name, label in _ALSO_ON_VAL.items():
        # An older checkpoint's epochs lack what is measured by now.
        known = {e.epoch: value for e in history if (value := getattr(e, name)) is not None}
        if known:
            right.plot(list(known), list(known.values()), "o-", label=label)
    for axes, name in ((loss, "loss, nats"), (right, "accuracy")):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half an epoch
        _label(axes, "epoch", name)
        axes.legend()
    return figure


def draw_confusion(matrix: Ints, labels: Sequence[str]) -> Figure:
    """`matrix` [K, K] as of `confusion_matrix`; its colours are shares of each class."""
    names = [short_label(label) for label in labels]
    room = 0.09 * max(map(len, names))  # inches that the names take
    side = min(_MAX_SIDE, 2.5 + (0.4 if len(labels) <= _MAX_NUMBERS else 0.2) * len(labels))
    figure = Figure(figsize=(side + room + 1, side + room), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    step = math.ceil(len(labels) / _MAX_NAMES)
    ticks, named = range(0, len(labels), step), names[::step]
    axes.set_xticks(ticks, named, rotation=90, parse_math=False)  # a $ is no formula
    axes.set_yticks(ticks, named, parse_math=False)
    those = f" (one class in {step} is named)" if step > 1 else ""
    axes.set(xlabel=f"taken for{those}", ylabel=f"is{those}")
    if len(labels) <= _MAX_NUMBERS:
        for row, column in np.argwhere(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            count = str(matrix[row, column])
            axes.text(column, row, count, ha="center", va="center", color=colour)
    return figure


def draw_reliability(probabilities: Floats, uncalibrated: Floats, targets: Ints) -> Figure:
    """Accuracy against confidence (Guo et al. 2017, section 2), with the temperature and before
    it: [n, K] each; targets [n]."""
    figure = Figure(figsize=(4.8, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    for scores, name, alpha in (
        (uncalibrated, "before the temperature", 0.35),
        (probabilities, "as served", 0.8),
    ):
        counts, confidence, right = reliability(scores, targets)
        filled = counts > 0
        sizes = 20 + 300 * counts[filled] / counts.sum()
        ece = expected_calibration_error(scores, targets)
        label = f"{name}: ECE {ece:.3f}"
        axes.scatter(
            confidence[filled], right[filled], sizes, alpha=alpha, label=label,
            clip_on=False,  # whole at 0 and 1
        )  # fmt: skip
    title = f"{len(targets)} test photos; bins, area by photos"
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), title=title)
    _label(axes, "confidence", "accuracy")
    figure.legend(loc="outside lower center")  # a bin may lie anywhere
    return figure


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)

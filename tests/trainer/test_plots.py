"""The plots of a version where names are long, not Latin, or many."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from trainer.figures import line_plot, log_times, save_png
from trainer.mistakes import draw_mistakes
from trainer.plots import draw_confusion, draw_reliability, draw_training, save_plots
from trainer.training import Epoch

LONG = "a very long name of a class that goes on and on"


@pytest.mark.parametrize(
    ("labels", "least"),
    [(["猫 & <cat>", f"$x_1$ {LONG}", "كلب"], 300), ([f"{k} {LONG}" for k in range(120)], 4000)],
)
def test_every_class_keeps_its_row_and_the_terminal_stays_quiet(
    tmp_path: Path, labels: list[str], least: int
):
    targets = np.arange(2 * len(labels)) % len(labels)
    scores = np.eye(len(labels), dtype=np.float32)[(targets + (targets == 0)) % len(labels)]
    black = np.zeros((8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_plots(
            tmp_path / "plots",
            [],
            scores,
            scores,
            targets,
            labels,
            lambda rows: [black for _ in rows],
        )
    matrix = np.asarray(Image.open(tmp_path / "plots/confusion.png").convert("RGB")).astype(int)
    blue = (matrix[:, :, 2] - matrix[:, :, 0]) > 60  # what is on the diagonal
    rows = np.flatnonzero(blue.any(axis=1))
    assert rows[-1] - rows[0] > least / 2, "the matrix is not squeezed by its names"
    assert (tmp_path / "plots/mistakes.png").exists()


def test_names_of_very_many_classes_do_not_lie_over_each_other():
    axes = draw_confusion(np.eye(1000, dtype=np.int64), [str(k) for k in range(1000)]).axes[0]
    named = [tick.get_text() for tick in axes.get_yticklabels()]
    assert named[:2] == ["0", "5"] and len(named) == 200
    assert axes.get_ylabel() == "is (one class in 5 is named)"


@pytest.mark.parametrize(
    ("mistakes", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (6, 1, 6), (7, 2, 4), (18, 3, 6)]
)
def test_a_few_photos_take_no_more_room_than_they_need(mistakes: int, rows: int, columns: int):
    black = [np.zeros((8, 8, 3), np.uint8)] * mistakes
    answers, targets = np.tile([0.2, 0.8], (mistakes, 1)), np.zeros(mistakes, np.int64)
    figure = draw_mistakes(black, answers, targets, ["cat", "dog"])
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)
    assert figure.get_figwidth() == 2 * columns
    assert all(axes.get_title() for axes in figure.axes[:mistakes])


def test_no_bin_of_the_calibration_lies_under_the_legend():
    scores = np.linspace([0.5, 0.5], [1, 0], 60).astype(np.float32)
    figure = draw_reliability(scores, scores, np.zeros(60, np.int64))
    FigureCanvasAgg(figure).draw()
    axes, legends = figure.axes[0], [*figure.legends, figure.axes[0].get_legend()]
    (legend,) = [one for one in legends if one is not None]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_what_chose_the_epoch_is_drawn_too_at_whole_epochs():
    history = [
        Epoch(0, float("nan"), float("nan"), 1.1, 0.5, 0.25, 0.375, 0.125),
        Epoch(1, 0.9, 0.6, 1.0, 0.75, 0.5, 0.625, 0.375),
    ]
    loss, right = draw_training(history).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert drawn["val"] == [0.5, 0.75] and drawn["val, under attack"] == [0.25, 0.5]
    assert drawn["val, mean recall"] == [0.375, 0.625]
    assert drawn["val, mean recall under attack"] == [0.125, 0.375]
    assert all(tick == int(tick) for axes in (loss, right) for tick in axes.get_xticks())


def test_what_is_not_known_of_an_older_checkpoints_epochs_is_not_drawn():
    older = Epoch(0, float("nan"), float("nan"), 1.1, 0.5, 0.25, 0.375)
    _, right = draw_training([older, Epoch(1, 0.9, 0.6, 1.0, 0.75, 0.5, 0.625, 0.375)]).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert drawn["val, under attack"] == [[0, 0.25], [1, 0.5]]
    assert drawn["val, mean recall under attack"] == [[1, 0.375]]


def test_a_saved_plot_has_the_pixels_that_matplotlib_would_save(tmp_path: Path):
    matrix = np.random.default_rng(0).integers(0, 5, (25, 25))
    labels = [f"a label of some length {i}" for i in range(25)]
    save_png(draw_confusion(matrix, labels), tmp_path / "ours.png")
    figure = draw_confusion(matrix, labels)
    FigureCanvasAgg(figure)
    figure.savefig(tmp_path / "theirs.png", dpi=110)
    ours, theirs = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        for name in ("ours", "theirs")
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seconds", [(62, 64, 67, 70), (14, 19, 25, 30), (14, 300, 4000, 22000)])
def test_times_that_are_much_alike_have_labels_that_can_be_read(
    tmp_path: Path, seconds: tuple[int, ...]
):
    with line_plot(tmp_path / "plot.png") as axes:
        for each in seconds:
            axes.plot(each, 0.5, "o", label=str(each))
        log_times(axes)
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    left, right = axes.get_xlim()
    labels = [t.label1 for t in ticks if t.label1.get_text() and left <= t.get_loc() <= right]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:], strict=False))

"""The plots of a report with names and numbers of classes that are hard to draw."""

import re
import warnings

import numpy as np
import pytest

from trainer.analysis import plots

LONG = ["a very long name of a class that goes on and on", "猫 & <cat>", "كلب صغير"]


def size_of(svg: str) -> tuple[float, float]:
    width, height = re.search(r'width="([0-9.]+)pt" height="([0-9.]+)pt"', svg).groups()
    return float(width), float(height)


@pytest.mark.parametrize("labels", [LONG, [f"{i} {LONG[0]}" for i in range(20)]])
def test_long_names_leave_room_for_the_matrix_and_say_nothing_on_the_terminal(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg, left_out = plots.confusion(np.eye(len(labels), dtype=int).tolist(), labels)
    assert left_out == 0
    image = re.findall(r'<image [^>]*width="([0-9.]+)"', svg)[0]  # a colour bar may follow
    assert float(image) > 10 * len(labels), "a cell is large enough to see"
    assert labels[0] not in svg and f"{labels[0][:23]}…" in svg


def test_the_scale_of_a_wide_matrix_is_seen_first_and_counts_whole_photos():
    svg, _ = plots.confusion(np.eye(40, dtype=int).tolist(), [f"breed {k}" for k in range(40)])
    written = re.findall(r'<text [^>]*\bx="([0-9.]+)"[^>]*>([^<]+)</text>', svg)
    places = {text: float(x) for x, text in written}
    assert places["photos"] < size_of(svg)[0] / 2, "a narrow page shows the left half"
    assert {"0", "1"} <= set(places) and not any("." in text for text in places)


def test_of_many_classes_those_that_take_part_are_shown():
    matrix = np.diag(np.full(120, 3))
    matrix[7, 9], matrix[50, 7] = 2, 1
    svg, left_out = plots.confusion(matrix.tolist(), [f"breed {k}" for k in range(120)])
    assert left_out == 117
    assert {f"breed {k}" for k in (7, 9, 50)} <= set(re.findall(r"breed [0-9]+", svg))
    assert size_of(svg)[0] < 600
    untouched, left_out = plots.confusion(
        np.diag(np.full(120, 3)).tolist(), [f"breed {k}" for k in range(120)]
    )
    assert left_out == 120 and untouched.startswith("<svg")


def test_where_all_of_very_many_classes_take_part_the_busiest_are_shown():
    matrix = np.ones((300, 300), int)
    matrix[123], matrix[:, 234] = 5, 5
    svg, left_out = plots.confusion(matrix.tolist(), [f"breed {k}" for k in range(300)])
    assert left_out == 200
    assert {"breed 123", "breed 234"} <= set(re.findall(r"breed [0-9]+", svg))
    assert size_of(svg)[0] < 1600


def test_the_interval_is_a_band_where_one_size_was_tried_too():
    clean = {"accuracy": 0.9, "low": 0.8, "high": 1.0}
    points = [{"epsilon": 4 / 255, "accuracy": 0.3, "low": 0.2, "high": 0.4}]
    svg = plots.accuracy_against_epsilon({"pgd": points}, points, clean, "linf")
    band = re.findall(r'PolyCollection_1">.*? d="([^"]+)"', svg, re.DOTALL)[0]
    across = set(re.findall(r"[ML] ([0-9.]+) ", band))
    assert len(across) == 2, "from the photos as they are to the size"


def test_levels_are_whole_where_all_photos_fall_at_one():
    svg = plots.smallest_perturbations({"linf": [1 / 255, 1 / 255]}, 2)
    below = re.findall(r">([0-9.]+)</text>", svg[: svg.index("L-infinity, k/255")])
    assert below == ["0", "1"]


def test_many_descents_are_their_quartiles():
    curves = {f"class {k}": [(0, 0.0), (10, k / 20), (20, 1.0)] for k in range(21)}
    svg = plots.descent(curves)
    assert "median" in svg and "class 3" not in svg
    assert "class 3" in plots.descent(dict(list(curves.items())[:5]))


def test_who_can_not_see_a_plot_is_told_what_it_is():
    assert 'role="img" aria-label="probability of the class against the step"' in plots.descent(
        {"cat": [(0, 0.1), (1, 0.9)]}
    )

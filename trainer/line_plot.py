"""A plot of a run in a file of its own, beside the versions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


@contextmanager
def line_plot(path: Path) -> Iterator[Axes]:
    """What is drawn within, each line with a label, is saved at the end: the same to the bit."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})

"""Plots to PNGs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

from serving.whole_file import names_disk
from trainer.lettering import any_script

_DPI = 110
_COMPRESSION = 3  # half the time of zlib's own 6, for a thirtieth more bytes


def save_png(figure: Figure, path: Path) -> None:
    """The very pixels of Figure.savefig, which draws all twice for the sake of the layout."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    with any_script():
        canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with names_disk(path):
        pixels.save(path, "PNG", compress_level=_COMPRESSION, dpi=(_DPI, _DPI))


@contextmanager
def line_plot(path: Path) -> Iterator[Axes]:
    """What is drawn within, each line with a label, is saved at the end."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)


def log_times(axes: Axes) -> None:
    """The x axis on a log scale, in plain numbers, also where its values are much alike: there
    matplotlib's own labels run into each other."""
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))

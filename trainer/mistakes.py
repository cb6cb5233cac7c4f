"""The photos that a net is most wrongly sure of: wrong labels and odd pictures come first."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from trainer.lettering import short_label
from trainer.metrics import Floats, Ints
from trainer.pictures import Pixels

_COLUMNS, _ROWS = 6, 3
_MOST = _COLUMNS * _ROWS


def most_wrong(probabilities: Floats, targets: Ints) -> Ints:
    """Indices of the wrong answers to be drawn, the one whose label was thought least likely first.

    probabilities [n, K], targets [n].
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    order = np.argsort(probabilities[wrong, targets[wrong]], kind="stable")
    return wrong[order[:_MOST]]


def draw_mistakes(
    pictures: Sequence[Pixels], probabilities: Floats, targets: Ints, labels: Sequence[str]
) -> Figure:
    """Each of `pictures` uint8 [S, S, 3] with what it is and what it was taken for; [n, K], [n]."""
    rows = max(1, -(-len(pictures) // _COLUMNS))
    figure = Figure(figsize=(2 * _COLUMNS, 2.4 * rows), layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS).ravel():
        axes.axis("off")
    for axes, picture, row, target in zip(
        figure.axes, pictures, probabilities, targets, strict=False
    ):
        axes.imshow(picture)
        taken = int(row.argmax())
        one, other = short_label(labels[target]), short_label(labels[taken])
        axes.set_title(
            f"{one} ({row[target]:.0%})\nas {other} ({row[taken]:.0%})",
            fontsize=8,
            parse_math=False,  # a label may hold $
        )
    return figure

"""Pictures of photos to look at: mistakes, wrong labels, and those least like the others."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from trainer.data import PhotoData
from trainer.lettering import short_file, short_label
from trainer.metrics import Floats, Ints
from trainer.pictures import Photo, Pixels

_COLUMNS, _ROWS = 6, 3
MOST = _COLUMNS * _ROWS


def most_wrong(probabilities: Floats, targets: Ints) -> Ints:
    """Indices of the wrong answers to be drawn, the one whose label was thought least likely first.

    probabilities [n, K], targets [n].
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    order = np.argsort(probabilities[wrong, targets[wrong]], kind="stable")
    return wrong[order[:MOST]]


def draw_mistakes(
    pictures: Sequence[Pixels], probabilities: Floats, targets: Ints, labels: Sequence[str]
) -> Figure:
    """Each of `pictures` uint8 [S, S, 3] with what it is and what it was taken for; [n, K], [n]."""
    titles = []
    for row, target in zip(probabilities, targets, strict=True):
        taken = int(row.argmax())
        one, other = short_label(labels[target]), short_label(labels[taken])
        titles.append(f"{one} ({row[target]:.0%})\nas {other} ({row[taken]:.0%})")
    return _gallery(pictures, titles)


def draw_label_errors(data: PhotoData) -> Figure:
    """The first photos whose label is probably wrong: the label, what it looks like, the file."""
    shown = data.label_errors[:MOST]
    titles = []
    for error in shown:
        label, looks_like = data.labels[error.photo.label], data.labels[error.looks_like]
        file = short_file(error.photo.file.rsplit("/", 1)[-1])
        titles.append(
            f"labelled {short_label(label)}\nlooks like {short_label(looks_like)}\n{file}"
        )
    return _gallery(data.squares.get([error.photo for error in shown]), titles)


def draw_strangest(data: PhotoData, photos: Sequence[Photo]) -> Figure:
    """The label and the file of each; MOST of them at most."""
    titles = [
        f"{short_label(data.labels[photo.label])}\n{short_file(photo.file.rsplit('/', 1)[-1])}"
        for photo in photos
    ]
    return _gallery(data.squares.get(photos), titles)


def _gallery(pictures: Sequence[Pixels], titles: Sequence[str]) -> Figure:
    rows = max(1, -(-len(pictures) // _COLUMNS))
    columns = max(1, -(-len(pictures) // rows))  # all rows alike, none of blanks
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    figure = Figure(figsize=(2 * columns, (2 + 0.2 * lines) * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.axis("off")
    for axes, picture, title in zip(figure.axes, pictures, titles, strict=False):
        axes.imshow(picture)
        axes.set_title(title, fontsize=8, parse_math=False)  # a label may hold $
    return figure

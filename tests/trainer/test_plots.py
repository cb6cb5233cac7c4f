"""The plots of a version where names are long, not Latin, or many."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.plots import save_plots

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

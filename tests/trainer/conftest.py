"""Folders of drawn photos to train on."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.quick_exports import read_operators_once

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see trainer.train
read_operators_once()

MakePhotos = Callable[..., Path]


def draw(label: str, seed: int) -> Image.Image:
    """Many small discs or one large square, in any colours and places."""
    generator = np.random.default_rng([len(label), seed])
    ground, ink = generator.integers(0, 110, 3), generator.integers(150, 256, 3)
    if generator.random() < 0.5:
        ground, ink = ink, ground
    width, height = generator.integers(64, 100, 2).tolist()
    image = Image.new("RGB", (width, height), tuple(ground.tolist()))
    pen = ImageDraw.Draw(image)
    count, radius = (14, 6.0) if label == "discs" else (1, generator.uniform(18, 26))
    shape = pen.ellipse if label == "discs" else pen.rectangle
    for x, y in generator.uniform(radius, (width - radius, height - radius), (count, 2)):
        shape((x - radius, y - radius, x + radius, y + radius), fill=tuple(ink.tolist()))
    return image


def write_photos(folder: Path, per_class: int, labels: tuple[str, ...], seed: int = 0) -> Path:
    """`folder`/<label>/<n>.jpg; another seed gives other photos."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            draw(label, 10_000 * seed + i).save(folder / label / f"{i:03}.jpg", quality=92)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> MakePhotos:
    """photos(name="photos", per_class=6, labels=("discs", "squares"), seed=0) -> its folder."""

    def make(
        name: str = "photos",
        per_class: int = 6,
        labels: tuple[str, ...] = ("discs", "squares"),
        seed: int = 0,
    ) -> Path:
        return write_photos(tmp_path / name, per_class, labels, seed)

    return make

"""The same picture in other bytes is found across splits; other pictures are not."""

from pathlib import Path
from random import Random

from PIL import Image

from serving.modelspec import Preprocessing
from trainer.cartoons import draw_cartoon
from trainer.config import TrainConfig
from trainer.data import PhotoData, load_data
from trainer.tree import find_files


def load(folder: Path) -> PhotoData:
    config = TrainConfig(data=str(folder), name="x", size=64)
    spec = Preprocessing(size=64, interpolation="bilinear")
    return load_data(config, find_files(folder), spec, lambda items, *_: items)


def cartoons(folder: Path) -> dict[str, Image.Image]:
    """Different ones in every split."""
    drawn = {}
    for i, split in enumerate(("train", "val", "test")):
        for species in ("cats", "dogs"):
            (folder / split / species).mkdir(parents=True)
            for n in range(12):
                file = f"{split}/{species}/{n}.jpg"
                drawn[file] = draw_cartoon(species, Random(f"{i} {species} {n}"))
                drawn[file].save(folder / file, quality=90)
    return drawn


def test_copies_of_another_size_and_quality_are_found(tmp_path: Path):
    drawn = cartoons(tmp_path)
    first, second = drawn["train/cats/3.jpg"], drawn["val/dogs/0.jpg"]
    smaller = first.resize((first.width * 2 // 3, first.height * 2 // 3))
    smaller.save(tmp_path / "test/cats/copy.jpg", quality=60)
    second.save(tmp_path / "test/dogs/copy.png")
    pairs = {(pair.one.file, pair.other.file) for pair in load(tmp_path).alike}
    assert pairs == {
        ("test/cats/copy.jpg", "train/cats/3.jpg"),
        ("test/dogs/copy.png", "val/dogs/0.jpg"),
    }


def test_different_pictures_are_not(tmp_path: Path):
    cartoons(tmp_path)
    assert load(tmp_path).alike == ()

"""The same picture in other bytes is found across splits; other pictures are not."""

import io
from pathlib import Path
from random import Random

import pytest
from PIL import Image, ImageOps

from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from trainer import data
from trainer.cartoons import draw_cartoon
from trainer.config import TrainConfig
from trainer.data import PhotoData, Progress, load_data
from trainer.near_duplicates import near_duplicates, thumbnail
from trainer.pictures import Photo
from trainer.tree import find_files


def load(folder: Path, progress: Progress = lambda items, *_: items) -> PhotoData:
    config = TrainConfig(data=str(folder), name="x", size=64)
    spec = Preprocessing(size=64, interpolation="bilinear")
    return load_data(config, find_files(folder), spec, progress)


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


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.05])
def test_crops_are_found_on_either_side(tmp_path: Path, share: float, mirrored: bool):
    drawn = cartoons(tmp_path)
    for source, crop in (("train/dogs/5", "test/dogs/crop"), ("test/cats/2", "train/cats/crop")):
        whole = drawn[f"{source}.jpg"]
        side, low = round(whole.width * share / 2), round(whole.height * share)
        cut = whole.crop((side, low, whole.width - side, whole.height))
        cut = ImageOps.mirror(cut) if mirrored else cut
        cut.save(tmp_path / f"{crop}.jpg", quality=80)
    pairs = {(pair.one.file, pair.other.file) for pair in load(tmp_path).alike}
    assert pairs == {
        ("test/dogs/crop.jpg", "train/dogs/5.jpg"),
        ("test/cats/2.jpg", "train/cats/crop.jpg"),
    }


def test_a_long_search_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = cartoons(tmp_path)
    drawn["train/dogs/1.jpg"].save(tmp_path / "test/dogs/again.jpg", quality=70)
    monkeypatch.setattr(data, "_COMPARED_AT_ONCE", 2)
    said: list[tuple[str, int, int]] = []

    def progress(items, title, total):
        items = list(items)
        said.append((title, len(items), total))
        return items

    (pair,) = load(tmp_path, progress).alike
    assert (pair.one.file, pair.other.file) == ("test/dogs/again.jpg", "train/dogs/1.jpg")
    assert [title for title, _, _ in said] == ["Opening photos", "Comparing splits"]
    assert all(came == total for _, came, total in said) and said[1][2] > 3


def test_plain_pictures_and_the_same_drawing_in_other_levels_are_not(tmp_path: Path):
    drawn = cartoons(tmp_path)
    for n, split in enumerate(("train", "test")):
        Image.new("RGB", (80, 80), (90 + n, 90, 90)).save(tmp_path / split / "cats/plain.jpg")
    faint = Image.blend(drawn["train/cats/0.jpg"], Image.new("RGB", (1, 1)).resize(
        drawn["train/cats/0.jpg"].size), 0.5)  # fmt: skip
    faint.save(tmp_path / "test/cats/faint.jpg")
    assert load(tmp_path).alike == ()


def test_real_photos_cropped_and_mirrored_are_found_and_others_are_not(shared_data: Path):
    """Recall of a tenth cut off a corner, and false alarms between train and test."""
    squares = {}
    spec = Preprocessing(size=224, interpolation="bilinear")
    for split in ("train", "test"):
        files = sorted((shared_data / "pets" / split).glob("*/*.jpg"))
        squares[split] = [preprocess(file.read_bytes(), spec) for file in files]
    cropped = []
    for file in sorted((shared_data / "pets/train").glob("*/*.jpg"))[::7]:
        with Image.open(file) as photo:
            cut = photo.crop((0, 0, round(photo.width * 0.9), round(photo.height * 0.9)))
        buffer = io.BytesIO()
        ImageOps.mirror(cut.convert("RGB")).save(buffer, "JPEG", quality=85)
        cropped.append(preprocess(buffer.getvalue(), spec))
    small = {
        f"{kind} {i}": thumbnail(picture)
        for kind, pictures in (*squares.items(), ("crop", cropped))
        for i, picture in enumerate(pictures)
    }
    photos = [Photo(path=Path(name), file=name, label=0, digest=name) for name in small]
    of = {
        kind: [photo for photo in photos if photo.file.startswith(kind)]
        for kind in ("train", "test", "crop")
    }
    found = near_duplicates(of["crop"], of["train"], small)
    right = [p for p in found if int(p.other.file[6:]) == 7 * int(p.one.file[5:])]
    assert len(right) == len(found) >= 0.9 * len(cropped)
    assert near_duplicates(of["test"], of["train"], small) == []


def test_different_pictures_are_not(tmp_path: Path):
    cartoons(tmp_path)
    assert load(tmp_path).alike == ()

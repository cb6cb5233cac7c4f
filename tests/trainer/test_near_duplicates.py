"""The same picture in other bytes is found, and kept together; other pictures are not."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from threadpoolctl import ThreadpoolController

from serving.modelspec import Preprocessing
from trainer import near_duplicates
from trainer.cartoons import draw_cartoon
from trainer.config import TrainConfig
from trainer.console import Progress, unshown
from trainer.data import PhotoData, load_data
from trainer.near_duplicates import groups_alike, thumbnail
from trainer.tree import find_files


def load(folder: Path, progress: Progress = unshown, seed: int = 0, size: int = 64) -> PhotoData:
    config = TrainConfig(data=str(folder), name="x", size=size, seed=seed)
    spec = Preprocessing(size=size, interpolation="bilinear")
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


def test_a_photo_that_is_like_one_of_either_other_split_is_told_once(tmp_path: Path):
    picture = cartoons(tmp_path)["train/cats/3.jpg"]
    for file in ("val/cats/copy.png", "test/cats/copy.png", "test/cats/other.png"):
        smaller = picture.resize((picture.width - len(file), picture.height - len(file)))
        smaller.save(tmp_path / file)
    pairs = [(pair.one.file, pair.other.file) for pair in load(tmp_path).alike]
    assert pairs == [
        ("test/cats/copy.png", "train/cats/3.jpg"),
        ("test/cats/other.png", "train/cats/3.jpg"),
        ("val/cats/copy.png", "train/cats/3.jpg"),
    ]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.1])
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
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 20)
    said: list[tuple[str, int, int]] = []

    def progress(items, title, total):
        items = list(items)
        said.append((title, len(items), total))
        return items

    (pair,) = load(tmp_path, progress).alike
    assert (pair.one.file, pair.other.file) == ("test/dogs/again.jpg", "train/dogs/1.jpg")
    assert [title for title, _, _ in said] == ["Opening photos", "Comparing photos"]
    assert all(came == total for _, came, total in said) and said[1][2] > 3


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_half_of_the_steps_of_a_search_are_half_of_its_work(count: int):
    """Each start is compared with all before it: in their order half took a quarter of the time."""
    order = near_duplicates._evenly(range(0, 20 * count, 20))
    assert sorted(order) == list(range(0, 20 * count, 20))
    for steps in range(2, count + 1, 2):
        assert sum(order[:steps]) / sum(order) == pytest.approx(steps / count, abs=0.06)


def test_plain_pictures_and_the_same_drawing_in_other_levels_are_not(tmp_path: Path):
    drawn = cartoons(tmp_path)
    for n, split in enumerate(("train", "test")):
        Image.new("RGB", (80, 80), (90 + n, 90, 90)).save(tmp_path / split / "cats/plain.jpg")
    faint = Image.blend(drawn["train/cats/0.jpg"], Image.new("RGB", (1, 1)).resize(
        drawn["train/cats/0.jpg"].size), 0.5)  # fmt: skip
    faint.save(tmp_path / "test/cats/faint.jpg")
    assert load(tmp_path).alike == ()


def test_light_that_falls_off_evenly_changes_nothing_of_what_is_compared():
    picture = np.random.default_rng(0).uniform(0, 255, (1, 32, 32))
    down, across = np.mgrid[:32, :32]
    both = (picture, picture + 3 * across - 2 * down + 20)
    one, lit = (near_duplicates._cut(each, near_duplicates._BOXES[:1], 8) for each in both)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert lit == pytest.approx(one, abs=1e-4)


def test_textures_in_the_same_light_are_not(tmp_path: Path):
    cartoons(tmp_path)
    light = np.linspace(60, 190, 256)[:, None]
    for n, split in enumerate(("train", "val", "test")):
        grain = np.random.default_rng(n).normal(0, 40, (256, 256))
        texture = Image.fromarray((light + grain).clip(0, 255).astype(np.uint8))
        texture.save(tmp_path / split / "cats/texture.png")
    assert load(tmp_path).alike == ()


def test_real_photos_cropped_and_mirrored_are_found_and_others_are_not(shared_data: Path):
    """Recall of a tenth cut off a corner, and false alarms between train and test."""
    photos = {}
    for split in ("train", "test"):
        files = sorted((shared_data / "pets" / split).glob("*/*.jpg"))
        photos[split] = [file.read_bytes() for file in files]
    cropped = []
    for file in sorted((shared_data / "pets/train").glob("*/*.jpg"))[::7]:
        with Image.open(file) as photo:
            cut = photo.crop((0, 0, round(photo.width * 0.9), round(photo.height * 0.9)))
        buffer = io.BytesIO()
        ImageOps.mirror(cut.convert("RGB")).save(buffer, "JPEG", quality=85)
        cropped.append(buffer.getvalue())
    kinds = (*photos.items(), ("crop", cropped))
    names = [f"{kind} {i}" for kind, of_kind in kinds for i in range(len(of_kind))]
    small = np.stack([thumbnail(photo) for _, of_kind in kinds for photo in of_kind])
    alike = {
        name: names[first]
        for name, first in zip(names, groups_alike(small, unshown), strict=True)
        if name != names[first]
    }
    right = [n for n, first in alike.items() if first == f"train {7 * int(n.split()[1])}"]
    assert sorted(alike) == sorted(right)
    assert len(right) >= 0.9 * len(cropped)


def bursts(folder: Path, *, of: int, each: int) -> None:
    """Per class `of` drawings, each saved in `each` sizes and qualities."""
    for species in ("cats", "dogs"):
        (folder / species).mkdir(parents=True)
        for n in range(of):
            drawn = draw_cartoon(species, Random(f"{species} {n}"))
            for k in range(each):
                smaller = drawn.resize((drawn.width - 9 * k, drawn.height - 9 * k))
                smaller.save(folder / species / f"{n}-{k}.jpg", quality=90 - 7 * k)


def in_one_split(data: PhotoData) -> Iterator[bool]:
    """For each drawing."""
    splits: dict[str, set[str]] = {}
    for split, photos in data.splits.items():
        for photo in photos:
            splits.setdefault(photo.file.partition("-")[0], set()).add(split)
    return (len(of) == 1 for of in splits.values())


@pytest.mark.parametrize(("of", "seed"), [(12, 0), (12, 1), (3, 0)])
def test_pictures_that_are_alike_stay_in_one_split_and_in_one_fold(
    tmp_path: Path, of: int, seed: int
):
    bursts(tmp_path, of=of, each=3)
    data = load(tmp_path, seed=seed)
    assert all(in_one_split(data))
    assert data.alike == () and data.together == 6 * of
    assert all(len(photos) >= of / 2 for photos in data.splits.values())
    dealt = data.splits["train"] + data.splits["val"]
    of_unit: dict[int, set[str]] = {}
    for photo, unit in zip(dealt, data.units(dealt).tolist(), strict=True):
        of_unit.setdefault(unit, set()).add(photo.file.partition("-")[0])
    assert all(len(drawings) == 1 for drawings in of_unit.values())
    assert len(of_unit) == len(dealt) / 3


def test_a_picture_between_two_others_joins_them():
    """The first and the last of a film, whatever their names, are one scene."""
    scene = np.random.default_rng(0).integers(0, 256, (4, 10, 3), dtype=np.uint8)
    wide = Image.fromarray(scene).resize((250, 100), Image.Resampling.BICUBIC)
    small = []
    for left in (0, 12, 6):
        buffer = io.BytesIO()
        wide.crop((left, 0, left + 100, 100)).save(buffer, "PNG")
        small.append(thumbnail(buffer.getvalue()))
    assert groups_alike(np.stack(small[:2]), unshown).tolist() == [0, 1]
    assert groups_alike(np.stack(small), unshown).tolist() == [0, 0, 0]


def test_the_groups_are_the_same_however_many_threads_look_for_them():
    """Each by itself: the threads of BLAS would spin for each other, and for whatever else runs."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (1500, 4, 4), dtype=np.uint8)
    pictures = coarse.repeat(8, axis=1).repeat(8, axis=2)
    of_another = generator.integers(0, 1500, 600)
    pictures = np.concatenate([pictures, pictures[of_another]])
    threads = set()

    def progress(items, *_):
        for item in items:
            threads.update(pool["num_threads"] for pool in blas.info())
            yield item

    blas = ThreadpoolController().select(user_api="blas")
    alone = groups_alike(pictures, progress, workers=1)
    assert alone.tolist() == [*range(1500), *of_another]
    assert groups_alike(pictures, progress, workers=4).tolist() == alone.tolist()
    assert threads == {1}


def test_an_interrupt_does_not_wait_for_the_photos_that_are_being_compared(monkeypatch):
    """Those of 30,000 took four seconds."""
    pictures = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8).repeat(2, axis=0)
    begun, look, found = threading.Event(), near_duplicates._candidates, []

    def late(pictures, ended, start):
        begun.set()
        assert ended.wait(20)
        found.append(look(pictures, ended, start))

    def progress(*_):
        assert begun.wait(20)
        raise KeyboardInterrupt

    assert look(pictures, threading.Event(), 0) == [(1, 0)]
    monkeypatch.setattr(near_duplicates, "_candidates", late)
    with pytest.raises(KeyboardInterrupt):
        groups_alike(pictures, progress)
    assert found == [[]]


def test_photos_are_split_the_same_way_whatever_the_size_of_the_net(tmp_path: Path):
    """Turned and darkened until some are found and others just not: a teacher may be of another
    size, and must not know the test photos."""
    generator = Random(0)
    for species in ("cats", "dogs"):
        (tmp_path / species).mkdir()
        for n in range(12):
            drawn = draw_cartoon(species, Random(f"{species} {n}"))
            for k in range(3):
                turned = drawn.rotate(generator.uniform(-4, 4), Image.Resampling.BILINEAR)
                darker = ImageEnhance.Brightness(turned).enhance(generator.uniform(0.85, 1))
                darker.save(tmp_path / species / f"{n}-{k}.jpg", quality=85)
    small, large = (load(tmp_path, size=size) for size in (32, 160))
    assert 10 < small.together < 72
    assert small.splits == large.splits


def test_a_class_of_one_picture_is_split_all_the_same_and_that_is_told(tmp_path: Path):
    bursts(tmp_path, of=1, each=8)
    data = load(tmp_path)
    assert all(data.splits.values())
    assert data.together == 0
    held_out = len(data.splits["test"]) + len(data.splits["val"])
    assert len(data.alike) == len({pair.one.file for pair in data.alike}) == held_out


def test_where_photos_of_different_classes_look_alike_likeness_is_not_gone_by(tmp_path: Path):
    """Parts of which some have a scratch: each looks like the others."""
    for label in ("scratched", "sound"):
        (tmp_path / label).mkdir()
        for n in range(15):
            part = draw_cartoon("cats", Random("the part"))
            part.putpixel((n, 3), (200, 0, 0) if label == "sound" else (0, 0, 200))
            part.save(tmp_path / label / f"{n}.png")
    data = load(tmp_path)
    assert data.indistinct and data.together == 0
    assert data.alike == data.at_odds == ()
    everything = [photo for photos in data.splits.values() for photo in photos]
    assert len(set(data.units(everything).tolist())) == 30


def test_a_burst_with_one_wrong_label_is_still_a_burst(tmp_path: Path):
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for n in range(60):
            draw_cartoon(label, Random(f"{label} {n}")).save(tmp_path / label / f"{n}.png")
    burst = draw_cartoon("cats", Random("the burst"))
    for n in range(24):
        burst.save(tmp_path / ("dogs" if n else "cats") / f"burst-{n}.jpg", quality=70 + n)
    data = load(tmp_path)
    assert not data.indistinct
    assert [pair.one.file for pair in data.at_odds] == ["cats/burst-0.jpg"]
    holds = [any("dogs/burst" in p.file for p in photos) for photos in data.splits.values()]
    assert sum(holds) == 1


def test_the_same_picture_under_two_labels_is_told(tmp_path: Path):
    drawn = cartoons(tmp_path)
    drawn["train/cats/5.jpg"].save(tmp_path / "train/dogs/again.jpg", quality=70)
    data = load(tmp_path)
    (pair,) = data.at_odds
    assert not data.indistinct
    assert {pair.one.file, pair.other.file} == {"train/cats/5.jpg", "train/dogs/again.jpg"}


def test_among_very_many_photos_whole_pictures_are_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bursts(tmp_path, of=12, each=2)
    monkeypatch.setattr(near_duplicates, "_MANY", 10)
    assert all(in_one_split(load(tmp_path)))


def test_different_pictures_are_not(tmp_path: Path):
    cartoons(tmp_path)
    assert load(tmp_path).alike == ()

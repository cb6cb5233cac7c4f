"""What is made of folders of photos, good and bad."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.photo_formats import readable
from serving.preprocess import preprocess
from tests.conftest import ROOT
from tests.trainer.conftest import MakePhotos, draw
from tests.trainer.photo_data import SPEC, data_of
from trainer.config import TrainConfig
from trainer.console import unshown
from trainer.data import PhotoData, load_data
from trainer.errors import InvalidData
from trainer.known_photos import NO_SPLIT, Split
from trainer.listing import find_photos
from trainer.pictures import Photo
from trainer.tree import SPLITS, same_below

LOOK = """
import sys
from pathlib import Path
from trainer.errors import InvalidData
from trainer.tree import find_files
try:
    find_files(Path(sys.argv[1]))
except InvalidData as error:
    print(error)
"""


def load(folder: Path, earlier: Split = NO_SPLIT, **settings: object) -> PhotoData:
    config = TrainConfig(data=str(folder), name="x", size=32, **settings)
    return load_data(config, find_photos(folder), SPEC, unshown, earlier)


def reasons(data: PhotoData) -> dict[str, str]:
    return {item.file: item.reason for item in data.left_out}


def names(data: PhotoData, split: str) -> set[str]:
    return {photo.file for photo in data.splits[split]}


def digests(data: PhotoData, *splits: str) -> set[str]:
    return {photo.digest for split in splits for photo in data.splits[split]}


def test_photos_stay_in_the_splits_of_an_earlier_version_where_that_is_asked_for(
    photos: MakePhotos,
):
    """By content, though their names are others now; of what is new some is tested on too."""
    folder = photos(per_class=20)
    before = load(folder)
    for photo in list(folder.glob("*/*")):
        photo.rename(photo.with_name(f"renamed-{photo.name}"))
    for photo in list(photos("more", per_class=20, seed=1).glob("*/*")):
        photo.rename(folder / photo.parent.name / f"new-{photo.name}")
    now = load(folder, json.loads(before.split_json()), seed=1)
    anew = load(folder, seed=1)
    learnt = digests(before, "train", "val")
    assert digests(now, "test") >= digests(before, "test")
    assert digests(now, "val") >= digests(before, "val")
    assert not digests(now, "test") & learnt and digests(anew, "test") & learnt
    assert any("/new-" in photo.file for photo in now.splits["test"])
    assert now.describe().counts == anew.describe().counts


def test_many_classes_take_no_longer_to_write_down():
    """Of 200,000 photos of 2,000 classes it took 69 s of a processor."""

    def seconds(classes: int) -> float:
        labels = tuple(f"{i:04}" for i in range(classes))
        photos = tuple(
            Photo(path=Path(f"{i}"), file=f"{i}", label=i % classes, digest="0" * 64)
            for i in range(20_000)
        )
        data = data_of(labels, {"train": photos, "val": (), "test": ()})
        started = time.process_time()
        assert len(json.loads(data.split_json())["train"]) == classes
        return time.process_time() - started

    assert seconds(2_000) < 10 * seconds(2)


def test_an_earlier_split_of_other_photos_changes_nothing(photos: MakePhotos):
    folder = photos(per_class=20)
    other = {"train": {"discs": ["discs/none.png"]}, "digests": {"test": ["0" * 16]}}
    assert load(folder, other).splits == load(folder).splits


def test_what_looks_like_a_photo_that_was_learnt_from_is_no_test_of_it(photos: MakePhotos):
    """A copy is dealt out with its original."""
    folder = photos(per_class=20)
    before = load(folder)
    for i, photo in enumerate(before.splits["train"]):
        with Image.open(folder / photo.file) as picture:
            ImageOps.mirror(picture).save(folder / photo.file.split("/")[0] / f"copy-{i}.png")
    now = load(folder, json.loads(before.split_json()))
    assert now.alike == ()
    assert digests(now, "test") >= digests(before, "test")
    assert not digests(now, "test") & digests(before, "train", "val")


def test_one_tree_is_split_evenly_over_the_classes(photos: MakePhotos):
    folder = photos(per_class=20)
    data = load(folder)
    assert data.labels == ("discs", "squares")
    counts = {s: np.bincount(data.targets(s)).tolist() for s in ("train", "val", "test")}
    assert counts == {"train": [14, 14], "val": [3, 3], "test": [3, 3]}
    together = [photo.file for split in data.splits.values() for photo in split]
    assert sorted(together) == sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*"))
    assert data.describe().counts["train"] == {"discs": 14, "squares": 14}


def test_the_split_depends_on_the_seed_and_so_does_the_digest(photos: MakePhotos):
    folder = photos(per_class=20)
    first, same, other = load(folder), load(folder), load(folder, seed=1)
    assert first.splits == same.splits != other.splits
    assert first.describe().digest == same.describe().digest != other.describe().digest


def test_the_digest_changes_with_any_photo(photos: MakePhotos):
    folder = photos(per_class=6)
    before = load(folder).describe().digest
    draw("discs", 999).save(folder / "discs" / "000.jpg")
    assert load(folder).describe().digest != before


def test_given_splits_stay_as_they_are_and_val_is_taken_from_train(photos: MakePhotos):
    folder = photos("all/train", per_class=10).parent
    photos("all/test", per_class=3, seed=1)
    data = load(folder)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert all(name.startswith("test/") for name in names(data, "test"))
    assert all(name.startswith("train/") for name in names(data, "train") | names(data, "val"))


def test_all_three_given(photos: MakePhotos):
    folder = photos("all/train", per_class=4).parent
    photos("all/valid", per_class=2, seed=1)
    photos("all/test", per_class=3, seed=2)
    data = load(folder)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 8, "val": 4, "test": 6}


def test_photos_are_kept_as_the_server_sees_them(photos: MakePhotos):
    data = load(photos())
    for photo in data.splits["train"]:
        (square,) = data.squares.get([photo])
        assert np.array_equal(square, preprocess(photo.path.read_bytes(), SPEC))


def test_what_cannot_be_read_is_named_with_its_reason_and_left_out(photos: MakePhotos):
    folder = photos(per_class=6)
    whole = (folder / "discs" / "000.jpg").read_bytes()
    (folder / "discs" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "discs" / "empty.jpg").touch()
    (folder / "squares" / "notes.txt").write_text("no image")
    (folder / "squares" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "squares" / "pipe.jpg")
    (folder / "squares" / ".DS_Store").write_text("hidden")
    data = load(folder)
    found = reasons(data)
    assert sorted(found) == [
        *("discs/cut.jpg", "discs/empty.jpg"),
        *("squares/gone.jpg", "squares/notes.txt", "squares/pipe.jpg"),
    ]
    assert "truncated" in found["discs/cut.jpg"]
    assert "empty" in found["discs/empty.jpg"]
    assert "not an image" in found["squares/notes.txt"]
    assert "dangling link" in found["squares/gone.jpg"]
    assert sum(map(len, data.splits.values())) == 12
    with pytest.raises(InvalidData, match=r"5 files can't be used \(--strict\): discs/cut.jpg"):
        load(folder, strict=True)


def test_photos_of_phones_are_learnt_from_too(photos: MakePhotos):
    """Which kinds a server reads is for its operator to say."""
    folder = photos(per_class=6)
    draw("discs", 99).save(folder / "discs" / "one.avif")
    shutil.copy(ROOT / "tests/serving/heic/turned.heic", folder / "squares" / "IMG_1.HEIC")
    data = load(folder)
    if "HEIC" in readable():
        assert not data.left_out
    used = set().union(*(names(data, split) for split in data.splits))
    assert {"discs/one.avif", "squares/IMG_1.HEIC"} - {*reasons(data)} <= used
    assert "discs/one.avif" in used or "AVIF" not in readable()


def test_photos_beside_the_class_folders_are_named_and_left_out(photos: MakePhotos, tmp_path: Path):
    folder = photos(per_class=6)
    before = load(folder)
    (folder / "readme.txt").write_text("no photo")
    for name in ("IMG_1.JPG", "IMG_2.png", ".IMG_3.jpg", os.fsdecode(b"b\xe4r.jpg")):
        draw("discs", len(name)).save(folder / name, "PNG")
    data = load(folder)
    assert {item.file for item in data.left_out} == {"IMG_1.JPG", "IMG_2.png", "b\\udce4r.jpg"}
    assert {item.reason for item in data.left_out} == {"it lies beside the class folders, in none"}
    assert data.splits == before.splits and data.describe() == before.describe()
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "train")
    draw("discs", 91).save(tmp_path / "all" / "IMG_4.png")
    given = load(tmp_path / "all")
    assert {item.file for item in given.left_out} == {
        *("IMG_4.png", "train/IMG_1.JPG", "train/IMG_2.png", "train/b\\udce4r.jpg"),
    }
    assert sum(map(len, given.splits.values())) == 12


def test_a_table_that_names_what_is_not_there_is_told_where_that_was_sought(photos: MakePhotos):
    folder = photos(per_class=6)
    named = [f.file for f in find_photos(folder)]
    rows = [f"{file},{file.split('/')[0]}" for file in named]
    rows += ["photos/discs/000.jpg,discs"]  # relative to another folder than the table's own
    (folder / "photos.csv").write_text("\n".join(["path,label", *rows]))
    data = load(folder / "photos.csv")
    missing = folder / "photos/discs/000.jpg"
    assert reasons(data) == {"photos/discs/000.jpg": f"there is no file {missing}"}


def test_a_photo_in_train_and_test_stays_in_test_alone(photos: MakePhotos):
    folder = photos("all/train", per_class=8).parent
    photos("all/test", per_class=3, seed=1)
    shutil.copy(folder / "test/discs/000.jpg", folder / "train/discs/again.jpg")
    shutil.copy(folder / "test/discs/001.jpg", folder / "train/squares/other.jpg")
    data = load(folder)
    assert reasons(data) == {
        "train/discs/again.jpg": "duplicate: same content as test/discs/000.jpg",
        "train/squares/other.jpg": (
            "duplicate: same content as test/discs/001.jpg, under another label (discs)"
        ),
    }
    assert len(data.splits["test"]) == 6
    digests = [{p.digest for p in split} for split in data.splits.values()]
    assert len(set.union(*digests)) == sum(map(len, digests))


def test_copies_in_one_tree_are_used_once(photos: MakePhotos):
    folder = photos(per_class=6)
    for i in range(5):
        shutil.copy(folder / "discs/000.jpg", folder / f"discs/copy{i}.jpg")
    data = load(folder)
    assert len(data.left_out) == 5 and sum(map(len, data.splits.values())) == 12


def test_photos_may_lie_deeper_and_links_are_followed(photos: MakePhotos, tmp_path: Path):
    folder = photos(per_class=4)
    (folder / "discs" / "more").mkdir()
    draw("discs", 77).save(folder / "discs" / "more" / "a.jpg")
    draw("squares", 78).save(tmp_path / "elsewhere.png")
    (folder / "squares" / "linked.png").symlink_to(tmp_path / "elsewhere.png")
    files = {photo.file for split in load(folder).splits.values() for photo in split}
    assert {"discs/more/a.jpg", "squares/linked.png"} <= files


def expect(folder: Path, message: str, **settings: object) -> None:
    with pytest.raises(InvalidData, match=message):
        load(folder, **settings)


def test_no_folder_no_classes_one_class(photos: MakePhotos, tmp_path: Path):
    expect(tmp_path / "absent", "no folder .*absent")
    (tmp_path / "file").touch()
    expect(tmp_path / "file", "is not a folder")
    (tmp_path / "none").mkdir()
    draw("discs", 0).save(tmp_path / "none" / "loose.jpg")
    expect(tmp_path / "none", "has no class folders; expected two or more folders")
    expect(photos("one", labels=("discs",)), r"has one class \(discs\); expected two or more")


def test_a_folder_of_no_images(tmp_path: Path):
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "readme.txt").write_text("nothing here")
    expect(tmp_path, "no photo that can be used .*readme.txt: not an image")


def test_an_empty_class_folder(photos: MakePhotos):
    folder = photos()
    (folder / "triangles").mkdir()
    expect(folder, "class folders without any file: .*triangles")


def test_a_class_with_too_few_images(photos: MakePhotos):
    folder = photos(per_class=6)
    for i in range(4):
        (folder / "squares" / f"{i:03}.jpg").write_bytes(b"spoilt")
    expect(
        folder,
        r"at least 3 in train \(test and val are taken from it\); squares has 2 \(4 left out",
    )


def test_a_test_folder_that_is_spoilt_is_not_replaced_from_train(photos: MakePhotos):
    folder = photos("all/train", per_class=8).parent
    photos("all/test", per_class=1, seed=1)
    (folder / "test/discs/000.jpg").write_bytes(b"")
    expect(folder, "at least 1 in test; discs has 0")


def test_splits_with_different_classes(photos: MakePhotos):
    folder = photos("all/train", labels=("cats", "discs", "squares")).parent
    photos("all/test", labels=("Cats", "discs", "squares"), seed=1)
    expect(folder, "classes 'Cats' and 'cats' in train and test differ only in case, spaces, ")


def test_three_photos_are_enough_for_train_val_and_test(photos: MakePhotos):
    data = load(photos(per_class=3), test_fraction=0.5)
    assert {split: len(data.splits[split]) for split in data.splits} == dict.fromkeys(SPLITS, 2)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing")])
def test_splits_under_other_names_are_no_classes(photos: MakePhotos, train: str, test: str):
    folder = photos(f"all/{train}", per_class=8).parent
    photos(f"all/{test}", per_class=2, seed=1)
    data = load(folder)
    assert data.labels == ("discs", "squares") and len(data.splits["test"]) == 4
    shutil.rmtree(folder / train)
    photos("all/val", per_class=2, seed=2)
    expect(folder, "and no train folder")


def test_two_folders_of_one_split_are_refused(photos: MakePhotos):
    for name in ("train", "val", "valid"):
        folder = photos(f"all/{name}").parent
    expect(folder, "beside it val; expected only train, val and test there, each once, or only cl")


def test_folders_that_all_classes_hold_may_be_what_was_meant(photos: MakePhotos):
    for year in ("2023", "2024"):
        folder = photos(f"years/{year}").parent
    assert same_below(find_photos(folder)) == ["discs", "squares"]
    assert same_below(find_photos(folder / "2023")) == []
    photos("years", labels=("2024",))  # photos of its own: it is a class
    assert same_below(find_photos(folder)) == []


def test_a_class_may_be_called_training_or_train(photos: MakePhotos):
    assert load(photos(labels=("discs", "training"))).labels == ("discs", "training")
    vehicles = photos("vehicles", labels=("car", "train"))
    assert load(vehicles).labels == ("car", "train")
    photos("vehicles", labels=("test",))
    expect(vehicles, "has a train folder and beside it car; expected only train, val and test")


def test_a_link_to_a_folder_is_followed_and_none_in_a_circle(photos: MakePhotos, tmp_path: Path):
    folder, more = photos(), photos("more", labels=("discs",), seed=1)
    (folder / "discs/more").symlink_to(more / "discs")
    (folder / "discs/round").symlink_to(folder / "discs")
    data = load(folder)
    assert sum(map(len, data.splits.values())) == 18 and data.left_out == ()


@pytest.mark.parametrize("where", [".", "train"])
def test_a_link_to_a_class_that_is_not_there_is_told(
    photos: MakePhotos, tmp_path: Path, where: str
):
    """A disk that is not mounted would cost a class in silence."""
    photos(f"photos/{where}")
    link = tmp_path / "photos" / where / "stars"
    link.symlink_to(tmp_path / "not-mounted")
    expect(tmp_path / "photos", f"{link} is a link that leads nowhere")


def test_a_link_upwards_is_no_class_of_everything(photos: MakePhotos):
    folder = photos()
    (folder / "discs/up").symlink_to("..")
    expect(folder, "discs/up leads back to a folder that it is a part of")


@pytest.mark.parametrize(
    ("folder", "mode", "entry"),
    [("discs/in", 0, "discs/in"), ("discs/in", 0o444, "discs/in/a"), (".", 0o444, ".")],
)
def test_a_folder_that_may_not_be_read_is_told_by_name(
    photos: MakePhotos, folder: str, mode: int, entry: str
):
    without: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, to give privileges up")
        # The same user: another one may not read this checkout.
        without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    root = photos()
    (root / "discs/in/a").mkdir(parents=True)
    (root / folder).chmod(mode)
    look = [sys.executable, "-c", LOOK, str(root)]
    try:
        done = subprocess.run([*without, *look], cwd=ROOT, capture_output=True, text=True)
    finally:
        (root / folder).chmod(0o755)
    assert done.stdout == f"{root / entry} can't be read: Permission denied\n", done.stderr


def test_a_name_that_can_not_be_written_down_is_told_before_the_training(photos: MakePhotos):
    folder = photos()
    os.rename(folder / "discs/000.jpg", os.fsencode(folder) + b"/discs/caf\xe9.jpg")
    expect(folder, r"caf\\xe9.jpg', .* is not UTF-8: rename it")


def test_class_folders_beside_the_splits(photos: MakePhotos):
    folder = photos("all/train").parent
    photos("all", labels=("lost",))
    expect(folder, "has a train folder and beside it lost")


def test_a_file_that_changes_during_the_training_is_noticed(photos: MakePhotos):
    data = load(photos())
    photo = data.splits["train"][0]
    data.squares._kept.clear()
    Image.new("RGB", (40, 40)).save(photo.path)
    with pytest.raises(InvalidData, match="was changed during the training"):
        data.squares.get([photo])
    photo.path.unlink()
    with pytest.raises(InvalidData, match="can't be read any more: No such file"):
        data.squares.get([photo])


def test_what_does_not_fit_in_memory_is_decoded_anew_and_the_same(photos: MakePhotos):
    data = load(photos())
    members = data.splits["train"]
    kept = data.squares.get(members)
    data.squares._kept.clear()
    data.squares._memory = 2 * kept[0].nbytes
    again = data.squares.get(members)
    assert len(data.squares._kept) == 2
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize(
    ("label", "other"),
    [
        *[("discs", "Discs"), ("discs", "discs "), ("dis cs", "dis_cs")],
        *[("1", "01"), ("10.0", "10")],
        ("caf\u00e9", "cafe\u0301"),  # é in one code point, as Linux has it, and in two
    ],
)
def test_classes_that_differ_only_in_case_spaces_or_encoding_are_one_misspelt(
    photos: MakePhotos, label: str, other: str
):
    folder = photos(labels=(label, "squares"))
    shutil.copytree(folder / "squares", folder / other)
    with pytest.raises(
        InvalidData, match="differ only in case, spaces, the encoding of accents or how .*; merge"
    ):
        load(folder)


def test_classes_of_numbers_that_differ_are_no_misspellings(photos: MakePhotos):
    labels = ("0", "1", "10", "100", "1.50")  # the photos differ with their lengths
    assert {each.label for each in find_photos(photos(labels=labels))} == set(labels)


def test_what_systems_bring_is_no_class_and_no_photo(photos: MakePhotos):
    folder = photos()
    (folder / "__MACOSX" / "discs").mkdir(parents=True)
    (folder / "__MACOSX" / "discs" / "._000.jpg").write_bytes(b"of a Mac")
    (folder / "lost+found").mkdir()
    preview = folder / "discs" / "@eaDir" / "000.jpg" / "SYNOPHOTO_THUMB_M.jpg"
    preview.parent.mkdir(parents=True)
    draw("discs", 90).save(preview)
    data = load(folder)
    assert data.labels == ("discs", "squares") and data.left_out == ()
    assert sum(map(len, data.splits.values())) == 12
    train = photos("given/train").parent
    shutil.move(folder / "__MACOSX", train)
    assert load(train).labels == ("discs", "squares")


@pytest.mark.parametrize("label", ["two\nlines", "\x1b[31mred", "two\u2028lines", " "])
def test_a_class_that_is_no_line_of_text_is_refused(photos: MakePhotos, label: str):
    with pytest.raises(InvalidData, match=r"the class '.*' in .* is not one line of text; rename"):
        load(photos(labels=(label, "squares")))

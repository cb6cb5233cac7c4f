"""The photos that a version is judged on."""

import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image, ImageOps

from serving.repository import Repository
from tests.photos import jpeg
from tests.tiny import LABELS, build_version
from trainer.analysis.photos import Photos, at_random, load_photos
from trainer.errors import InvalidData
from trainer.tree import Found


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """photos/<label>/<n>.jpg, relative to their folder."""
    names = []
    for i in range(12):
        name = f"{LABELS[i % 2]}/{i:02}.jpg"
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed=i))
        names.append(name)
    return names


def split_of(tested: list[str], trained: list[str]) -> dict[str, dict[str, list[str]]]:
    return {
        part: {label: [n for n in names if n.startswith(label)] for label in LABELS}
        for part, names in (("train", trained), ("val", []), ("test", tested))
    }


def load(
    tmp_path: Path,
    data: Path,
    split: dict[str, dict[str, list[str]]],
    *,
    limit: int | None = None,
    seed: int = 0,
    once: bool = False,
) -> Photos:
    """The photos of `data` for a version that was made with this split."""
    extra = {"split.json": json.dumps(split).encode()}
    build_version(tmp_path / "models", "pets", extra_files=extra)
    repository = Repository(tmp_path / "models")
    manifest = repository.manifest("pets", 1)
    return load_photos(data, repository, manifest, limit=limit, seed=seed, workers=2, once=once)


def test_photos_that_the_version_may_have_been_trained_on_are_counted(tmp_path, files):
    """The train folder alone was given, so their names lack its own."""
    trained = [f"{LABELS[i % 2]}/{i:02}.jpg" for i in range(6, 12)]

    def in_folder(folder: str, names: list[str]) -> dict[str, list[str]]:
        return {label: [f"{folder}/{n}" for n in names if n.startswith(label)] for label in LABELS}

    both = [*trained, files[0]]  # of a name that is in either, it is not known which one it is
    split = {"train": in_folder("train", both), "val": {}, "test": in_folder("test", files[:3])}
    photos = load(tmp_path, tmp_path / "photos", split)
    assert len(photos.files) == 12 and photos.known == 6


def test_of_more_than_are_asked_for_the_seed_draws_classes_by_turns(tmp_path, files):
    def drawn(limit: int, seed: int = 0) -> list[str]:
        place = tmp_path / f"{limit}-{seed}"
        photos = load(place, tmp_path / "photos", split_of([], []), limit=limit, seed=seed)
        return list(photos.files)

    assert sorted(drawn(100)) == sorted(drawn(12)) == sorted(files)
    some = drawn(6)
    assert [sum(name.startswith(label) for name in some) for label in LABELS[:2]] == [3, 3]
    assert set(some) < set(files) and set(drawn(6, seed=1)) != set(some)


def test_photos_drawn_at_random_keep_the_shares_of_the_classes():
    found = [Found(path=Path(f"{i:04}"), file=f"{i:04}", label=str(i % 10 == 0), split=None)
             for i in range(2000)]  # fmt: skip
    drawn = at_random(found, 1000, 0)
    assert [f.file for f in drawn] == sorted({f.file for f in drawn}) and len(drawn) == 1000
    assert 60 < sum(f.label == "True" for f in drawn) < 140  # of 100
    assert at_random(found, 1000, 0) == drawn != at_random(found, 1000, 1)
    assert at_random(found, 5000, 0) == at_random(found, None, 0) == found


def test_versions_are_compared_on_photos_that_none_was_trained_on(tmp_path, files):
    """The second has been split anew, with a photo more; and one of the first's has moved."""
    photos, (moved, new) = tmp_path / "photos", (f"{LABELS[0]}/moved.jpg", f"{LABELS[1]}/new.jpg")
    digests = {"train": [hashlib.sha256((photos / files[0]).read_bytes()).hexdigest()[:16]]}
    splits = [
        split_of(files[5:], files[:5]) | {"digests": digests},
        split_of([*files[:5], *files[10:]], files[5:10]),
    ]
    for split in splits:
        extra = {"split.json": json.dumps(split).encode()}
        build_version(tmp_path / "models", "pets", extra_files=extra)
    (photos / files[0]).rename(photos / moved)
    (photos / new).write_bytes(jpeg(seed=100))
    repository = Repository(tmp_path / "models")
    both = [repository.manifest("pets", number) for number in (1, 2)]
    for manifest in both:
        found = load_photos(
            photos, repository, manifest, limit=None, seed=0, workers=1, of_all=both
        )  # fmt: skip
        assert sorted(found.files) == sorted([*files[10:], new])
    for name in (*files[10:], new):
        (photos / name).unlink()
    with pytest.raises(InvalidData, match="neither content nor name"):
        load_photos(photos, repository, both[0], limit=9, seed=0, workers=1, of_all=both)


def copied(photo: Path, name: str, quality: int = 60) -> None:
    with Image.open(photo) as picture:
        smaller = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3))
        ImageOps.mirror(smaller).save(photo.with_name(name), quality=quality)


def test_copies_and_bursts_count_once_where_that_is_asked_for(tmp_path, files):
    """Ten photos of one moment would show as much as ten of ten moments."""
    for name in files[:2]:
        copied(tmp_path / "photos" / name, "copy.jpg")
    all_of_them = load(tmp_path / "all", tmp_path / "photos", split_of([], []))
    assert len(all_of_them.files) == 14 and all_of_them.alike == 0
    once = load(tmp_path / "once", tmp_path / "photos", split_of([], []), once=True)
    assert sorted(once.files) == sorted(files) and once.alike == 2
    assert len(once.pixels) == len(once.labels) == 12


def test_a_class_that_has_little_but_copies_is_not_left_out(tmp_path, files):
    """As where it is split: of a class that is one picture in many copies, one would be left."""
    for i in range(9):
        copied(tmp_path / "photos" / files[0], f"copy-{i}.jpg", quality=60 + i)
    once = load(tmp_path, tmp_path / "photos", split_of([], []), once=True)
    assert len(once.files) == 21 and once.alike == 0


def test_a_file_that_is_no_picture_is_left_out_and_named(tmp_path, files):
    (tmp_path / "photos" / LABELS[0] / "broken.jpg").write_bytes(b"no picture")
    photos = load(tmp_path, tmp_path / "photos", split_of([], []))
    assert sorted(photos.files) == sorted(files)
    assert [each.file for each in photos.left_out] == [f"{LABELS[0]}/broken.jpg"]


def test_photos_that_the_version_was_trained_on_are_known_under_other_names(tmp_path, files):
    digests = [hashlib.sha256((tmp_path / "photos" / n).read_bytes()).hexdigest() for n in files]
    split = split_of(files[:3], files[3:]) | {"digests": {"train": [d[:16] for d in digests[3:]]}}
    (tmp_path / "photos").rename(tmp_path / "moved")
    for name in files:
        photo = tmp_path / "moved" / name
        photo.rename(photo.with_name(f"copy-{photo.name}"))
    assert load(tmp_path, tmp_path / "moved", split).known == 9
    before = split_of(files[:3], files[3:])  # of a version that has no digests
    assert load(tmp_path / "before", tmp_path / "moved", before).known == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_of_a_table_with_splits_the_test_alone_is_used(tmp_path, files, suffix):
    table = pyarrow.table(
        {
            "path": files,
            "label": [name.split("/")[0] for name in files],
            "split": ["test" if i < 4 else "train" for i in range(12)],
        }
    )
    path = tmp_path / "photos" / f"listed.{suffix}"
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    photos = load(tmp_path, path, split_of([], []))
    assert sorted(photos.files) == sorted(files[:4])
    for file, label in zip(photos.files, photos.labels, strict=True):
        assert file.startswith(f"{LABELS[label]}/")


def test_of_a_table_without_splits_what_was_trained_on_is_passed_over(tmp_path, files):
    rows = "".join(f"{name},{name.split('/')[0]}\n" for name in files)
    path = tmp_path / "photos" / "listed.csv"
    path.write_text(f"path,label\n{rows}")
    assert sorted(load(tmp_path, path, split_of(files[:6], files[6:])).files) == sorted(files[:6])


def test_a_folder_gives_the_same_photos(tmp_path, files):
    photos = load(tmp_path, tmp_path / "photos", split_of(files[:6], files[6:]))
    assert sorted(photos.files) == sorted(files[:6])


def test_a_table_that_is_wrong_is_refused(tmp_path, files):
    (tmp_path / "t.csv").write_text("file,label\n1.jpg,cat\n")
    with pytest.raises(InvalidData, match="has no column path; it has file, label"):
        load(tmp_path, tmp_path / "t.csv", split_of([], []))

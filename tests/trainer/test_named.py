"""Data sets by name: miniatures laid out as torchvision's own loaders expect them."""

import hashlib
import json
import pickle
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from serving.errors import Unavailable
from serving.repository import Repository
from tests.photos import jpeg
from trainer import cats_vs_dogs
from trainer.cartoons import write_cartoons
from trainer.errors import InvalidData
from trainer.listing import find_photos
from trainer.train import main
from trainer.tree import labels_of


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pets(folder: Path, of_each: int = 4) -> None:
    """images/ and annotations/ of two breeds: half of the photos are trainval, half test."""
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(("Abyssinian", "american_bulldog"), start=1):
        for i in range(of_each):
            write(folder / "images" / f"{breed}_{i}.jpg", jpeg(seed=10 * label + i))
            row = f"{breed}_{i} {label} {label} 1"
            lines["trainval" if i % 2 == 0 else "test"].append(row)
    for split, rows in lines.items():
        write(folder / "annotations" / f"{split}.txt", "\n".join(rows) + "\n")
    write(folder / "annotations" / "list.txt", "\n".join(sum(lines.values(), [])) + "\n")


def by_split(found) -> dict:
    return dict(Counter((each.split, each.label) for each in found))


def test_pets_have_their_official_split(tmp_path):
    pets(tmp_path / "oxford-iiit-pet")
    found = find_photos(Path("oxford-iiit-pet"), tmp_path)
    assert by_split(found) == {
        (split, label): 2
        for split in ("train", "test")
        for label in ("Abyssinian", "American Bulldog")
    }
    assert found[0].file == "oxford-iiit-pet/images/Abyssinian_0.jpg"
    assert all(each.path == tmp_path / each.file and each.path.is_file() for each in found)


def test_without_a_folder_sets_lie_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, folder in (
        ("XDG_CACHE_HOME", tmp_path / "caches/pawprint/datasets"),
        ("PAWPRINT_CACHE", tmp_path / "caches/datasets"),  # before the user's own
    ):
        monkeypatch.setenv(name, str(tmp_path / "caches"))
        pets(folder / "oxford-iiit-pet")
        found = find_photos(Path("oxford-iiit-pet"))
        assert {each.path for each in found} == {folder / each.file for each in found}


def test_food101_is_read_without_opening_a_photo(tmp_path):
    meta = {"train": {"ramen": ["ramen/1"], "pho": ["pho/2"]}, "test": {"ramen": ["ramen/3"]}}
    meta["test"]["pho"] = ["pho/4"]
    for split, files in meta.items():
        write(tmp_path / "food-101" / "meta" / f"{split}.json", json.dumps(files))
    (tmp_path / "food-101" / "images").mkdir()
    found = find_photos(Path("food101"), tmp_path)
    assert {(f.split, f.label, f.file.removeprefix("food-101/images/")) for f in found} == {
        ("train", "ramen", "ramen/1.jpg"),
        ("train", "pho", "pho/2.jpg"),
        ("test", "ramen", "ramen/3.jpg"),
        ("test", "pho", "pho/4.jpg"),
    }


def test_flowers_have_train_val_and_test(tmp_path, monkeypatch):
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    digests = dict(datasets.Flowers102._file_dict)
    digests |= {"label": ("imagelabels.mat", md5(folder / "imagelabels.mat"))}
    digests |= {"setid": ("setid.mat", md5(folder / "setid.mat"))}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", digests)
    found = find_photos(Path("flowers102"), tmp_path)
    assert [each.split for each in found] == ["train", "train", "val", "val", "test", "test"]
    assert labels_of(found) == ("hard-leaved pocket orchid", "pink primrose")
    assert found[2].file == "flowers-102/jpg/image_00003.jpg" and found[2].label == "pink primrose"


def test_of_imagenette_val_is_the_test(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n03394916"):
            for i in range(count):
                write(tmp_path / "imagenette2" / split / wnid / f"{i}.JPEG", jpeg(seed=i))
    found = by_split(find_photos(Path("imagenette"), tmp_path))
    assert found == {
        ("train", "tench"): 3,
        ("train", "French horn"): 3,
        ("test", "tench"): 1,
        ("test", "French horn"): 1,
    }


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Five pictures in cifar-10-batches-py; the pixels of each batch."""
    folder = tmp_path / "cifar-10-batches-py"
    generator = np.random.default_rng(0)
    batches = {}
    for name, labels in (("data_batch_1", [0, 1, 1]), ("test_batch", [1, 0])):
        batches[name] = generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        write(folder / name, pickle.dumps({"data": batches[name], "labels": labels}))
    write(folder / "batches.meta", pickle.dumps({"label_names": ["airplane", "cat"]}))
    for names, attribute in ((["data_batch_1"], "train_list"), (["test_batch"], "test_list")):
        listed = [[name, md5(folder / name)] for name in names]
        monkeypatch.setattr(datasets.CIFAR10, attribute, listed)
    meta = datasets.CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return batches


def test_the_pixels_of_cifar_are_written_once_as_they_are(tmp_path, cifar):
    found = find_photos(Path("cifar10"), tmp_path)
    assert [(f.split, f.label) for f in found] == [
        ("train", "airplane"), ("train", "cat"), ("train", "cat"),
        ("test", "cat"), ("test", "airplane"),
    ]  # fmt: skip
    expected = cifar["data_batch_1"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(Image.open(found[1].path)), expected)
    written = found[1].path.stat().st_mtime_ns
    assert find_photos(Path("cifar10"), tmp_path) == found
    assert found[1].path.stat().st_mtime_ns == written


def test_cifar_whose_pixels_can_not_be_written_is_not_said_to_be_broken(tmp_path, cifar):
    (tmp_path / "cifar10-png").touch()  # as on a disk that is full, or may not be written to
    with pytest.raises(Unavailable, match=r"cifar10-png/train, where its photos .* can't be writ"):
        find_photos(Path("cifar10"), tmp_path)


def test_half_of_cifar_is_said_to_be_no_more(tmp_path, cifar):
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cut off")
    with pytest.raises(InvalidData, match="or it is damaged.; remove cifar-10-batches-py there"):
        find_photos(Path("cifar10"), tmp_path)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server on this machine for the files in `folder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def served_pets(tmp_path, monkeypatch) -> Iterator[Path]:
    """The archives that the loader downloads, from a server on this machine."""
    pets(tmp_path / "remote")
    archives = []
    for name in ("images", "annotations"):
        archive = tmp_path / "remote" / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "remote" / name, name)
        archives.append(archive)
    with served(tmp_path / "remote") as address:
        resources = tuple((f"{address}/{archive.name}", md5(archive)) for archive in archives)
        monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
        yield tmp_path / "remote"


@pytest.fixture
def cats_and_dogs(tmp_path, monkeypatch) -> Iterator[Path]:
    """An archive laid out as Microsoft's is, of 6 cartoons of each and a broken photo, served."""
    drawn, archive = tmp_path / "drawn", tmp_path / "remote" / "cats.zip"
    write_cartoons(drawn, per_class=6)
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for species, name in (("cats", "Cat"), ("dogs", "Dog")):
            for i, path in enumerate(sorted((drawn / species).iterdir())):
                file.write(path, f"PetImages/{name}/{i}.jpg")
            file.writestr(f"PetImages/{name}/Thumbs.db", b"no photo")
        file.writestr("PetImages/Cat/666.jpg", b"")
        file.writestr("readme[1].txt", "photos")
        file.writestr("../outside.txt", "a path that leads out")
    monkeypatch.setattr(cats_vs_dogs, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with served(archive.parent) as address:
        monkeypatch.setattr(cats_vs_dogs, "URL", f"{address}/{archive.name}")
        yield archive


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_what_is_not_there_is_downloaded_once(tmp_path, served_pets):
    root = tmp_path / "cache" / "sets"
    found = find_photos(Path("oxford-iiit-pet"), root)
    assert len(found) == 8 and all(each.path.is_file() for each in found)
    (served_pets / "images.tar.gz").unlink()
    assert find_photos(Path("oxford-iiit-pet"), root) == found
    assert {p.name for p in root.iterdir()} == {".lock", "oxford-iiit-pet"}


def test_half_of_a_set_is_named_and_nothing_is_downloaded_in_vain(tmp_path, served_pets):
    half = tmp_path / "sets" / "oxford-iiit-pet" / "images"
    half.mkdir(parents=True)
    with pytest.raises(InvalidData, match="not all of it is there.*; remove oxford-iiit-pet there"):
        find_photos(Path("oxford-iiit-pet"), tmp_path / "sets")
    half.parent.rename(tmp_path / "sets" / "before")
    assert len(find_photos(Path("oxford-iiit-pet"), tmp_path / "sets")) == 8


def test_a_folder_that_can_not_be_written_to_is_not_said_to_hold_a_broken_set(tmp_path):
    (tmp_path / "sets").touch()
    with pytest.raises(Unavailable, match="is not in .*sets and can't be downloaded .*exists"):
        find_photos(Path("oxford-iiit-pet"), tmp_path / "sets")


def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(tmp_path, served_pets, capsys):
    (served_pets / "annotations.tar.gz").unlink()
    root = tmp_path / "sets"
    arguments = ["--data", "oxford-iiit-pet", "--datasets", str(root), "--out", str(tmp_path / "m")]
    assert main([*arguments, "--backbone", "tiny", "--weights", "none"]) == 75
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: oxford-iiit-pet is not in {root} and can't be downloaded (")
    assert "--datasets DIR" in said and "--data FOLDER" in said
    assert {p.name for p in root.iterdir()} == {".lock"}


def test_cats_vs_dogs_is_downloaded_once_and_has_no_split(tmp_path, cats_and_dogs):
    root = tmp_path / "sets"
    found = find_photos(Path("cats-vs-dogs"), root)
    assert by_split(found) == {(None, "Cat"): 7, (None, "Dog"): 6}
    assert found[0].file == "cats-vs-dogs/PetImages/Cat/0.jpg"
    assert found[0].path.read_bytes() == (tmp_path / "drawn/cats/cat_0000.jpg").read_bytes()
    cats_and_dogs.unlink()
    assert find_photos(Path("cats-vs-dogs"), root) == found
    assert {p.name for p in root.iterdir()} == {".lock", "cats-vs-dogs"}
    assert not list(root.rglob("*.zip"))


@pytest.mark.parametrize("cut", [False, True])
def test_another_archive_of_cats_vs_dogs_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, cats_and_dogs, cut
):
    if cut:
        cats_and_dogs.write_bytes(cats_and_dogs.read_bytes()[:-100])
    else:
        monkeypatch.setattr(cats_vs_dogs, "SHA256", "0" * 64)
    root = tmp_path / "sets"
    with pytest.raises(Unavailable, match=r"\(cats.zip has the SHA-256 \w{64}, expected"):
        find_photos(Path("cats-vs-dogs"), root)
    assert {p.name for p in root.iterdir()} == {".lock"}


def test_cats_vs_dogs_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    with served(tmp_path) as address:
        monkeypatch.setattr(cats_vs_dogs, "URL", f"{address}/cats.zip")
    root = tmp_path / "sets"  # nothing listens there any more
    with pytest.raises(Unavailable, match=r"cats-vs-dogs is not in .*refused.*--datasets DIR"):
        find_photos(Path("cats-vs-dogs"), root)
    assert {p.name for p in root.iterdir()} == {".lock"}


def test_cats_vs_dogs_without_its_dogs_is_not_whole(tmp_path):
    write(tmp_path / "cats-vs-dogs" / "PetImages" / "Cat" / "0.jpg", jpeg())
    with pytest.raises(InvalidData, match=r"can't be read \(.*Dog.*\); remove cats-vs-dogs there"):
        find_photos(Path("cats-vs-dogs"), tmp_path)


def test_cats_vs_dogs_is_trained_on_by_its_name(tmp_path, cats_and_dogs, capsys):
    out = tmp_path / "models"
    arguments = ["--data", "cats-vs-dogs", "--datasets", tmp_path / "sets", "--out", out]
    arguments += ["--backbone", "tiny", "--weights", "none", "--size", 32, "--epochs", 1]
    assert main([str(argument) for argument in arguments]) == 0
    repository = Repository(out)
    assert repository.verify("cats-vs-dogs", 1) == []
    assert repository.manifest("cats-vs-dogs", 1).labels == ("Cat", "Dog")
    assert "cats-vs-dogs/PetImages/Cat/666.jpg" in "".join(capsys.readouterr())


def test_a_set_that_is_not_whole_is_named(tmp_path):
    pets(tmp_path / "oxford-iiit-pet")
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").unlink()
    with pytest.raises(
        InvalidData, match="oxford-iiit-pet in .* can't be read .*remove oxford-iiit-pet there"
    ):
        find_photos(Path("oxford-iiit-pet"), tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"ramen": 3}', '"x"', "{"])
def test_lists_of_another_form_are_named_too(tmp_path, content):
    (tmp_path / "food-101" / "images").mkdir(parents=True)
    write(tmp_path / "food-101" / "meta" / "train.json", content)
    with pytest.raises(InvalidData, match="food101 in .* can't be read .*remove food-101 there"):
        find_photos(Path("food101"), tmp_path)


def test_an_official_split_of_nothing_is_not_replaced_by_one_of_ours(tmp_path):
    pets(tmp_path / "oxford-iiit-pet")
    write(tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt", "")
    with pytest.raises(
        InvalidData, match=r"can't be read \(no photo of test\); remove oxford-iiit-pet there"
    ):
        find_photos(Path("oxford-iiit-pet"), tmp_path)


def test_a_name_that_is_none_is_told_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidData, match="no folder cifar, and no data set of that name"):
        find_photos(Path("cifar"), tmp_path)


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch, photos):
    photos("cifar10", per_class=2)
    monkeypatch.chdir(tmp_path)
    assert labels_of(find_photos(Path("cifar10"), tmp_path)) == ("discs", "squares")

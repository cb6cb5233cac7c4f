"""Shards in a real S3 store: found, copied where there is room, and read in parts where not."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.bucket import Bucket
from serving.errors import InvalidRequest, Unavailable
from tests.object_store import BUCKET, running_store
from tests.photos import jpeg
from tests.ports import free_port
from tests.trainer.conftest import write_photos
from tests.trainer.shards import samples, write_tar
from trainer.errors import InvalidData
from trainer.listing import find_photos
from trainer.make_shards import main as make_shards
from trainer.shard_cache import ShardCache
from trainer.shard_places import Member
from trainer.tree import Found

_SHARDS = f"s3://{BUCKET}/shards"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the photos of a folder, which is returned, in shards of 1 MB."""
    folder = tmp_path_factory.mktemp("shards")
    photos = write_photos(folder / "photos", 6, ("discs", "squares"))
    for i in range(5):
        (photos / "discs" / f"large{i}.jpg").write_bytes(os.urandom(400_000))
    with running_store(folder) as store, pytest.MonkeyPatch.context() as patch:
        store.put_into(patch)
        command = ["--data", str(photos), "--out", _SHARDS, "--shard-mb", "1"]
        assert make_shards(command) == 0
        yield photos


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> Iterator[Path]:
    monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path))
    monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", "1")  # however full the disk of the tests is
    yield tmp_path / "shards"


def contents(found: list[Found]) -> dict[str, bytes]:
    return {each.file: each.path.read_bytes() for each in found}


def copies(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.tar"))


def test_photos_are_those_of_the_folder(store: Path, cache: Path):
    found, folder = find_photos(_SHARDS), find_photos(store)
    assert [(f.file, f.label) for f in found] == [(f.file, f.label) for f in folder]
    assert contents(found) == contents(folder)
    shards = {f.path.shard for f in found if isinstance(f.path, Member)}
    assert len(copies(cache)) == len(shards) >= 3 and not list(cache.glob("*.part"))
    for path in copies(cache):
        path.unlink()  # as when another process has made room
    assert contents(found) == contents(folder)


@pytest.mark.parametrize(
    "pattern", ["/photos-*.tar", "/photos-00000?.tar", "/{photos,x}*.tar", "/"]
)
def test_patterns_are_those_of_files(pattern: str):
    if pattern == "/{photos,x}*.tar":
        with pytest.raises(InvalidData, match=r"that are not there: s3://.*/shards/x\*.tar"):
            find_photos(_SHARDS + pattern)
    else:
        assert len(find_photos(_SHARDS + pattern)) == 17
    assert len(find_photos(f"s3://{BUCKET}/*/photos-*.tar")) == 17


def test_without_room_parts_of_shards_are_asked_for(
    store: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", "0")
    found = find_photos(_SHARDS)
    assert copies(cache) == [] and contents(found) == contents(find_photos(store))
    monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", "0.00085")  # for one of them
    assert contents(find_photos(_SHARDS)) == contents(found) and len(copies(cache)) == 1
    (first,) = copies(cache)
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(first, (long_ago, long_ago))
    Bucket(f"s3://{BUCKET}/one").upload(write_tar(cache / "x", samples(0)), "x.tar")
    size = first.stat().st_size + 1000
    monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", f"{size / 1e9}")
    find_photos(f"s3://{BUCKET}/one")
    assert len(copies(cache)) == 1 and not first.exists()  # it gave way
    for wrong in ("-1", "much", "nan"):
        monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", wrong)
        with pytest.raises(InvalidRequest, match="must be a number, 0 or more"):
            find_photos(_SHARDS)


def test_a_copy_that_becomes_whole_while_room_is_made_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Once: as a part, or as what it has become."""
    part, whole = tmp_path / "first.part", tmp_path / "first.tar"
    cache, listed = ShardCache(tmp_path, limit=1500), Path.glob
    for becomes_whole_before in ("*.part", "*.tar"):
        whole.unlink(missing_ok=True)
        part.write_bytes(bytes(1000))

        def glob(folder: Path, pattern: str, before: str = becomes_whole_before) -> list[Path]:
            if pattern == before and part.exists():
                part.rename(whole)
            return list(listed(folder, pattern))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "glob", glob)
            assert not cache._reserve(tmp_path / "second.part", 1000)
            assert cache._reserve(tmp_path / "second.part", 400)
        (tmp_path / "second.part").unlink()


@pytest.mark.parametrize("limit", [None, "0"])
def test_a_shard_that_is_cut_off_or_replaced_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
):
    if limit is not None:
        monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", limit)
    bucket, place = Bucket(f"s3://{BUCKET}/other"), f"s3://{BUCKET}/other/a.tar"
    whole = write_tar(tmp_path / "a.tar", samples(0)).read_bytes()
    for length in (0, 700, 1500):
        bucket.write("a.tar", whole[:length])
        with pytest.raises(InvalidData, match="a.tar is cut off"):
            find_photos(place)
    bucket.write("a.tar", whole)
    assert contents(find_photos(place)) == {"000000.jpg": jpeg(seed=0), "000001.jpg": jpeg(seed=1)}
    bucket.write("a.tar", write_tar(tmp_path / "b.tar", samples(7)).read_bytes())
    assert contents(find_photos(place)) == {"000007.jpg": jpeg(seed=7), "000008.jpg": jpeg(seed=8)}


def test_what_is_not_there_is_named():
    with pytest.raises(InvalidData, match=f"no shard matches s3://{BUCKET}/absent"):
        find_photos(f"s3://{BUCKET}/absent")
    with pytest.raises(Unavailable, match="s3://no-such-bucket can't be used: there is no such"):
        find_photos("s3://no-such-bucket/photos-*.tar")
    with pytest.raises(InvalidRequest, match="a bucket is one of s3://"):
        find_photos("http://somewhere/photos.tar")


def test_shards_are_not_written_over_others(store: Path, capsys: pytest.CaptureFixture[str]):
    assert make_shards(["--data", str(store), "--out", _SHARDS]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {_SHARDS} is not empty; empty it, or choose another --out\n"
    )


def test_shards_of_which_not_all_were_written_are_not_read(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    place = f"s3://{BUCKET}/cut"
    command = ["--data", str(store), "--out", place, "--shard-mb", "1"]
    upload = Bucket.upload

    def cut_off(bucket: Bucket, file: Path, key: str) -> None:
        if key == "photos-000001.tar":
            raise Unavailable("the store went away")
        upload(bucket, file, key)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", cut_off)
        assert make_shards(command) == 75
    for data in (place, f"{place}/photos-000000.tar"):
        with pytest.raises(InvalidData, match="not all shards are there"):
            find_photos(data)
    assert make_shards(command) == 2
    assert f"{place} is half written; empty it, or choose" in capsys.readouterr().err
    Bucket(place).delete(list(Bucket(place).stored(deep=False)))
    assert make_shards(command) == 0
    assert len(find_photos(place)) == 17


def test_a_store_that_can_not_be_reached_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from trainer.train import main as train

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert train(["--data", f"{_SHARDS}/photos-*.tar", "--weights", "none", "--size", "32"]) == 75
    error = capsys.readouterr().err
    assert error.startswith(f"error: {_SHARDS} can't be used: ") and error.count("\n") == 1


def test_a_cache_that_goes_away_is_not_a_shard_that_the_store_lacks(
    store: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    chunks = Bucket.chunks

    def without_cache(bucket: Bucket, key: str, start: int, size: int) -> Iterator[bytes]:
        for data in chunks(bucket, key, start, size):
            shutil.rmtree(cache, ignore_errors=True)
            yield data

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "chunks", without_cache)
        found = find_photos(_SHARDS)
    assert copies(cache) == [] and contents(found) == contents(find_photos(store))
    Bucket(_SHARDS).write("gone-000000.tar", b"x")

    def deleted(bucket: Bucket, key: str, start: int, size: int) -> Iterator[bytes]:
        Bucket(_SHARDS).delete([key])
        yield from chunks(bucket, key, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "chunks", deleted)
        with pytest.raises(InvalidData, match=r"gone-000000\.tar is not there any more"):
            find_photos(f"{_SHARDS}/gone-*.tar")

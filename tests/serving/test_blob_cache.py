"""The bound of the cache of files from elsewhere; what else it does is tested over real stores."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.blob_cache import BlobCache, limit_of
from serving.errors import InvalidRequest, Unavailable
from serving.modelspec import FileEntry

FILES = [bytes([letter]) * 100 for letter in b"abcd"]


class Store:
    """A file of each letter, and how often each was asked for."""

    def __init__(self, cache: BlobCache) -> None:
        self.cache = cache
        self.asked: list[bytes] = []

    def fetch(self, data: bytes, age_s: float = 0.0) -> Path:
        def download(start: int) -> Iterator[bytes]:
            self.asked.append(data[:1])
            for place in range(start, len(data)):
                os.sched_yield()  # to whoever wants the same
                yield data[place : place + 1]

        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        path = self.cache.fetch(entry, "somewhere", download)
        os.utime(path, (time.time() - age_s,) * 2)
        return path


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = Store(BlobCache(tmp_path, 250))
    a, b, c = (
        store.fetch(data, age_s) for data, age_s in zip(FILES, (900, 800, 700), strict=False)
    )
    assert not a.exists() and b.exists()
    store.fetch(FILES[1], age_s=600)  # used again: now c is the oldest
    store.fetch(FILES[3])
    assert b.exists() and not c.exists()
    assert store.fetch(FILES[0]).read_bytes() == FILES[0]
    assert store.asked == [b"a", b"b", b"c", b"d", b"a"]


def test_who_wants_the_same_at_once_waits_for_the_one_that_downloads_it(tmp_path: Path) -> None:
    store = Store(BlobCache(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for data in FILES:
            (path,) = set(pool.map(store.fetch, [data] * 8))
            assert path.read_bytes() == data
    assert store.asked == [b"a", b"b", b"c", b"d"]


def test_what_has_just_been_fetched_stays_however_small_the_bound(tmp_path: Path) -> None:
    store = Store(BlobCache(tmp_path, 0))
    kept = [store.fetch(data) for data in FILES]
    assert all(path.exists() for path in kept)
    for path in kept:
        os.utime(path, (0, 0))
    store.cache.prune()
    assert not any(path.exists() for path in kept)


def test_a_cache_that_goes_away_is_not_a_file_that_the_store_lacks(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache")
    entry = FileEntry(sha256=hashlib.sha256(FILES[0]).hexdigest(), size=len(FILES[0]))

    def download(start: int) -> Iterator[bytes]:
        yield FILES[0]
        shutil.rmtree(cache.root)

    with pytest.raises(Unavailable, match=r"the cache .* can't be used: No such file"):
        cache.fetch(entry, "somewhere", download)
    assert Store(cache).fetch(FILES[0]).read_bytes() == FILES[0]


def test_what_is_being_checked_is_not_pruned_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(BlobCache(tmp_path, 0))
    path = store.fetch(FILES[0], age_s=900)
    digest = hashlib.file_digest

    def slow(*arguments: Any) -> Any:
        store.cache.prune()  # as another server does meanwhile
        return digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", slow)
    assert store.fetch(FILES[0]) == path and path.read_bytes() == FILES[0]
    assert store.asked == [b"a"]


def test_the_bound_is_read_from_the_environment() -> None:
    assert limit_of({}, "PAWPRINT_CACHE_GB") is None
    assert limit_of({"PAWPRINT_CACHE_GB": "1.5"}, "PAWPRINT_CACHE_GB") == 1_500_000_000
    for text in ("many", "-1", "inf"):
        with pytest.raises(InvalidRequest, match="PAWPRINT_CACHE_GB must be a number"):
            limit_of({"PAWPRINT_CACHE_GB": text}, "PAWPRINT_CACHE_GB")

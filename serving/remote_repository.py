"""A model repository in a bucket: the layout of a folder's, with the manifest written last.

An object store has no rename, so what makes a version appear is its manifest.json: readers look for
nothing else. A number is claimed first, by an object that only one publisher can create:

<prefix>/cats/.claims/2         the number 2 is taken, whatever became of its publication
<prefix>/cats/2/model.onnx ...  then manifest.sha256, and at last manifest.json
<prefix>/cats/aliases/stable    one object, replaced whole if it still is what was read
"""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from serving.blob_cache import BlobCache
from serving.bucket import Bucket
from serving.errors import BrokenVersion, Unavailable
from serving.layout import (
    ANALYSIS,
    ANALYSIS_DIGESTS,
    ANALYSIS_NEXT,
    MANIFEST,
    MANIFEST_DIGEST,
    NAME,
    NUMBER,
    alias_lines,
    analysis_digests,
    check_name,
    contained,
    digest_line,
    entries_below,
    next_file,
)
from serving.modelspec import FileEntry, Manifest
from serving.repository import Repository

CLAIMS = ".claims"
_MOST_WRITES = 50  # of one object that others write too: so many are never at it


class RemoteRepository(Repository):
    """Every method raises Unavailable if the store can't be used.

    `root` is a folder of this machine, for staging and for what is not a version.
    """

    def __init__(self, bucket: Bucket, cache: Path, most_cached_bytes: int | None = None) -> None:
        key = hashlib.sha256(bucket.location.encode()).hexdigest()[:16]
        super().__init__(cache / "repositories" / key)
        self._bucket = bucket
        self._cache = BlobCache(cache, most_cached_bytes)
        self._cache.prune()

    @property
    def location(self) -> str:
        return self._bucket.location

    # --- what is there

    def exists(self) -> bool:
        return True  # a prefix is there whatever it holds

    def names(self) -> list[str]:
        return list(self.stamps())

    def stamps(self) -> dict[str, Hashable]:
        """By one listing of everything: requests for each 1,000 objects, not for each model."""
        digests: dict[str, Any] = {}
        found = set()
        for key, stored in sorted(self._bucket.stored().items()):
            name, _, rest = key.partition("/")
            digest = digests.setdefault(name, hashlib.sha256())
            digest.update(f"{rest}\0{stored.size}\0{stored.stamp}\0".encode())
            if NAME.fullmatch(name) and re.fullmatch(_VERSION + MANIFEST, rest):
                found.add(name)
        return {name: digests[name].hexdigest() for name in sorted(found)}

    def versions(self, name: str) -> list[int]:
        keys = self._bucket.sizes(check_name(name))
        return sorted(
            int(match[1]) for key in keys if (match := re.fullmatch(_VERSION + MANIFEST, key))
        )

    def stamp(self, name: str, version: int) -> tuple[tuple[object, ...], ...]:
        stored = self._bucket.stored(f"{check_name(name)}/{version}")
        return tuple((file, stored[file].size, stored[file].stamp) for file in sorted(stored))

    # --- the bytes of a version

    def _read(self, name: str, version: int, file: str) -> bytes:
        try:
            return self._bucket.read(f"{name}/{version}/{contained(file)}")
        except FileNotFoundError as error:
            raise BrokenVersion(f"{file} is missing") from error

    def _read_entry(self, name: str, version: int, file: str, entry: FileEntry) -> bytes:
        return self._fetch(name, version, file, entry).read_bytes()

    def _fetch(self, name: str, version: int, file: str, entry: FileEntry) -> Path:
        key = f"{name}/{version}/{contained(file)}"

        def download(start: int) -> Iterator[bytes]:
            try:
                yield from self._bucket.chunks(key, start, entry.size)
            except FileNotFoundError as error:
                raise BrokenVersion(f"{file} is missing") from error

        return self._cache.fetch(entry, f"{self.location}/{key}", download)

    def _entry(self, name: str, version: int, file: str) -> FileEntry:
        """Read from the store itself, past the cache."""
        size = self._bucket.sizes(f"{name}/{version}").get(contained(file))
        if size is None:
            raise BrokenVersion(f"{file} is missing")
        digest = hashlib.sha256()
        for data in self._bucket.chunks(f"{name}/{version}/{file}", 0, size):
            digest.update(data)
        return FileEntry(sha256=digest.hexdigest(), size=size)

    def _files(self, name: str, version: int) -> set[str]:
        return set(self._bucket.sizes(f"{name}/{version}"))

    def verify_to_load(self, name: str, version: int) -> list[str]:
        """By names and sizes: a server downloads what it needs, and no weights for training."""
        manifest = self.manifest(name, version)
        sizes = self._bucket.sizes(f"{name}/{version}")
        wanted = {file: entry.size for file, entry in manifest.files.items()}
        return [
            f"{file} is {'not of the right size' if file in sizes else 'missing'}"
            for file, size in wanted.items()
            if sizes.get(file) != size
        ]

    # --- publishing

    def publish(
        self,
        name: str,
        staging: Path,
        describe: Callable[[int, dict[str, FileEntry]], Manifest],
    ) -> Manifest:
        """Upload what lies in `staging` as the next version; returns its manifest.

        If it fails half-way its number stays unused, and no reader has seen anything; only where
        the answer to the write of the manifest is lost may the version be there after all.
        """
        files = entries_below(staging)
        version = self._claim(name)
        manifest = describe(version, files)
        data = manifest.to_json().encode()
        for file in files:
            self._bucket.upload(staging / file, f"{name}/{version}/{file}")
        self._bucket.write(f"{name}/{version}/{MANIFEST_DIGEST}", digest_line(data))
        self._bucket.write(f"{name}/{version}/{MANIFEST}", data)
        self.describe_to_triton(name, version)
        return manifest

    def _write_beside(self, name: str, file: str, data: bytes) -> None:
        self._bucket.write(f"{name}/{file}", data)

    def _claim(self, name: str) -> int:
        keys = self._bucket.sizes(check_name(name))
        taken = (re.match(rf"{_VERSION}|{re.escape(CLAIMS)}/(\d+)$", key) for key in keys)
        version = max((int(match[1] or match[2]) for match in taken if match), default=0) + 1
        for number in range(version, version + _MOST_WRITES):
            if self._bucket.create(f"{name}/{CLAIMS}/{number}", b"claimed\n"):
                return number
        raise self._refuses_conditions(f"{name}/{CLAIMS}")

    def _refuses_conditions(self, key: str) -> Unavailable:
        """Of a store, or of a proxy before it that changes ETags, which says at every write that
        another was there first."""
        return Unavailable(
            f"{self.location} can't be used: {_MOST_WRITES} conditional writes (If-None-Match, "
            f"If-Match) to {key} were refused one after the other; what does not know them, or "
            "alters the ETags on the way?"
        )

    def attach_analysis(self, name: str, version: int, staging: Path) -> None:
        """Replace the analysis of a version; a reader finds all of it or the one before, also if
        it is cut off: what digests.json names lies there under its own name or its digest."""
        self.check_version(name, version)
        folder = f"{name}/{version}"
        entries = entries_below(staging, f"{ANALYSIS}/")
        digests = analysis_digests(entries)
        old = {key for key in self._files(name, version) if key.startswith(f"{ANALYSIS}/")}
        paths = {file: staging / file.removeprefix(f"{ANALYSIS}/") for file in entries}
        beside = {next_file(entry): paths[file] for file, entry in entries.items()}
        if ANALYSIS_DIGESTS in old:
            for key, path in beside.items():
                self._bucket.upload(path, f"{folder}/{key}")
            self._bucket.write(f"{folder}/{ANALYSIS_DIGESTS}", digests)
            old.update(beside)
        for file, path in paths.items():
            self._bucket.upload(path, f"{folder}/{file}")
        self._bucket.write(f"{folder}/{ANALYSIS_DIGESTS}", digests)
        left = old - {ANALYSIS_DIGESTS, *paths}
        next_last = sorted(left, key=lambda file: (file.startswith(ANALYSIS_NEXT), file))
        self._bucket.delete([f"{folder}/{file}" for file in next_last])

    def write_page(self, html: str) -> str:
        self._bucket.write("index.html", html.encode())
        return f"{self.location}/index.html"

    # --- aliases

    def _alias_names(self, name: str) -> list[str]:
        return list(self._bucket.sizes(f"{name}/aliases"))

    def _read_alias(self, name: str, alias: str) -> bytes | None:
        try:
            return self._bucket.read(f"{name}/aliases/{alias}")
        except FileNotFoundError:
            return None

    def _change_alias(
        self, name: str, alias: str, change: Callable[[list[int]], list[int]]
    ) -> list[int]:
        """Of two at once the later one changes what the other made of it."""
        key = f"{check_name(name)}/aliases/{check_name(alias)}"
        after = None
        for _ in range(_MOST_WRITES):
            stamp = self._bucket.stamp(key)  # first: what is read then is no older
            before = self._alias_to_change(name, alias)
            if before == after:
                return after  # written, but the answer to that was lost
            after = change(before)
            if after == before or self._bucket.replace(key, alias_lines(after), stamp):
                return after
        raise self._refuses_conditions(key)


_VERSION = rf"({NUMBER.pattern})/"

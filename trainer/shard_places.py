"""Where shards lie, a folder or a bucket, and how any of their bytes are read."""

import glob
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from serving.bucket import Bucket, Stored
from serving.errors import InvalidRequest, listed
from serving.paths import is_file
from trainer.errors import InvalidData

# An object that lies beside shards for as long as not all of them are written.
UNFINISHED = "unfinished"

_MOST_NAMES = 1_000_000  # that a pattern may stand for
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class FileShard:
    path: Path
    size: int  # bytes
    stamp: str  # another one for another content

    @property
    def location(self) -> str:
        return str(self.path)

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def read(self, start: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def beside(self, name: str) -> bytes | None:
        """A file in the shard's folder, or in the one above."""
        for folder in self.path.absolute().parents[:2]:
            if is_file(folder / name):
                return (folder / name).read_bytes()
        return None


@dataclass(frozen=True, kw_only=True)
class BucketShard:
    bucket: Bucket = field(compare=False)
    location: str
    key: str  # below the bucket's prefix
    size: int
    stamp: str
    copy: Path | None = field(default=None, compare=False)  # of the whole, on this machine

    def open(self) -> BinaryIO:
        """From the first byte on; it can't be wound back where there is no copy."""
        if self.copy is not None:
            return self.copy.open("rb")
        return io.BufferedReader(_Chunks(self.chunks()))

    def chunks(self) -> Iterator[bytes]:
        """The whole of it. Raises InvalidData if it is gone, which is no trouble of the disk that
        a copy is written to."""
        try:
            yield from self.bucket.chunks(self.key, 0, self.size)
        except FileNotFoundError as error:
            raise InvalidData(f"{self.location} is not there any more") from error

    def read(self, start: int, size: int) -> bytes:
        if self.copy is not None:
            try:
                with self.copy.open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError:
                pass  # another process has made room
        end = min(start + size, self.size)  # a store refuses what lies behind it
        return b"".join(self.bucket.chunks(self.key, start, end))

    def beside(self, name: str) -> bytes | None:
        """An object under the shard's prefix, or under the one above."""
        scheme, _, rest = self.location.partition("://")
        for folder in list(PurePosixPath(rest).parents)[:2]:
            if folder.name:
                try:
                    return Bucket(f"{scheme}://{folder}").read(name)
                except FileNotFoundError:
                    continue
        return None


Shard = FileShard | BucketShard


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a shard."""

    shard: Shard
    offset: int  # of its first byte
    size: int

    def read_bytes(self) -> bytes:
        """Raises OSError, Unavailable."""
        return self.shard.read(self.offset, self.size)


def shard_key(shard: Shard) -> str:
    """Hex; another one for another place or content."""
    text = "\n".join((shard.location, str(shard.size), shard.stamp))
    return hashlib.sha256(text.encode()).hexdigest()


def find_shards(pattern: str) -> list[Shard]:
    """The shards that a pattern with braces and wildcards stands for, sorted by their places.

    Raises InvalidData where there is none, or where one that is named is missing; InvalidRequest,
    Unavailable for a bucket that can't be used.
    """
    found: dict[str, Shard] = {}
    missing = []
    folders: dict[str, tuple[Bucket, dict[str, Stored]]] = {}
    for each in expand_braces(pattern):
        shards = _in_bucket(each, folders) if "://" in each else _in_folder(each)
        found |= {shard.location: shard for shard in shards}
        if not shards:
            missing.append(each)
    if not found:
        raise InvalidData(f"no shard matches {pattern}")
    if missing:
        raise InvalidData(f"{pattern} names shards that are not there: {listed(missing, 1)}")
    return [found[location] for location in sorted(found)]


def expand_braces(pattern: str) -> list[str]:
    """{000..012} and {train,val} as a shell has them. Raises InvalidRequest for other braces."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = sorted(map(int, span.groups()))
        if last - first >= _MOST_NAMES:
            raise InvalidRequest(f"{pattern} stands for more than {_MOST_NAMES:,} shards")
        padded = any(len(end) > 1 and end[0] == "0" for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise InvalidRequest(f"{pattern}: {match[0]} is neither {{FIRST..LAST}} nor {{ONE,OTHER}}")
    names: dict[str, None] = {}
    for choice in choices:
        names |= dict.fromkeys(
            expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
        )
        if len(names) > _MOST_NAMES:
            raise InvalidRequest(f"{pattern} stands for more than {_MOST_NAMES:,} shards")
    return list(names)


def shards_of_folder(folder: Path) -> list[Shard]:
    """Sorted by name; the folder's own name is no pattern, whatever is in it."""
    found = _in_folder(f"{glob.escape(str(folder))}/*.tar")
    return sorted(found, key=lambda shard: shard.location)


def _in_folder(pattern: str) -> list[Shard]:
    named = not _WILD.search(pattern) or is_file(Path(pattern))  # a folder may be called a[1]
    paths = [pattern] if named else glob.glob(pattern)
    shards: list[Shard] = []
    for path in map(Path, paths):
        if is_file(path):
            status = path.stat()
            stamp = f"{status.st_mtime_ns} {status.st_ino}"
            shards.append(FileShard(path=path.absolute(), size=status.st_size, stamp=stamp))
    return shards


def _in_bucket(pattern: str, folders: dict[str, tuple[Bucket, dict[str, Stored]]]) -> list[Shard]:
    """Each folder is listed once, however many names a pattern stands for."""
    folder, deep = pattern.rpartition("/")[0], False
    while _WILD.search(folder):
        folder, deep = folder.rpartition("/")[0], True
    if folder not in folders:
        bucket = Bucket(folder)
        objects = bucket.stored(deep=deep)
        for key in objects:
            if PurePosixPath(key).name == UNFINISHED:
                raise InvalidData(
                    f"{bucket.location}/{key} says that not all shards are there: their writing is "
                    "under way, or was cut off; then empty the place and write them again"
                )
        folders[folder] = bucket, objects
    bucket, objects = folders[folder]
    below = pattern[len(folder) + 1 :]
    if _WILD.search(below):  # rooted, so that a star stands for one name and the whole must match
        keys = [key for key in objects if PurePosixPath(f"/{key}").match(f"/{below}")]
    else:
        keys = [below] if below in objects else []
    return [
        BucketShard(
            bucket=bucket,
            location=f"{bucket.location}/{key}",
            key=key,
            size=objects[key].size,
            stamp=objects[key].stamp,
        )
        for key in keys
    ]


class _Chunks(io.RawIOBase):
    """Pieces of bytes as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)

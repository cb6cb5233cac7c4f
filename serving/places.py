"""Where a batch job reads photos and writes its parts: a folder, or a prefix of a bucket."""

from pathlib import Path
from typing import Protocol

from serving.bucket import Bucket
from serving.errors import InvalidRequest
from serving.photo_paths import photo_paths
from serving.preprocess import ENDINGS
from serving.whole_file import replaced


class Place(Protocol):
    """Keys are relative POSIX paths."""

    def photos(self) -> list[str]:
        """The keys of all photos, sorted; told by the ends of their names."""

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError, Unavailable."""

    def files(self) -> set[str]:
        """Every key."""

    def write(self, key: str, data: bytes) -> None:
        """Whole or not at all."""


class Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def photos(self) -> list[str]:
        return [path.relative_to(self._root).as_posix() for path in photo_paths([self._root])]

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def files(self) -> set[str]:
        return {p.relative_to(self._root).as_posix() for p in self._root.rglob("*") if p.is_file()}

    def write(self, key: str, data: bytes) -> None:
        with replaced(self._root / key, mode=0o644) as file:
            file.write(data)


class BucketPlace:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.read = bucket.read
        self.write = bucket.write

    def photos(self) -> list[str]:
        found = sorted(key for key in self._bucket.sizes() if Path(key).suffix.lower() in ENDINGS)
        if not found:
            raise InvalidRequest(f"no photos in {self._bucket.location}")
        return found

    def files(self) -> set[str]:
        return set(self._bucket.sizes())


def place(location: str) -> Place:
    """Raises InvalidRequest for a bucket of no known kind."""
    if "://" in location:
        return BucketPlace(Bucket(location))
    return Folder(Path(location))

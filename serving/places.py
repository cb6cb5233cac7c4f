"""Where a batch job reads photos and writes its parts: a folder, or a prefix of a bucket."""

import errno
import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from serving.bucket import Bucket, s3_code
from serving.client_messages import file_bytes
from serving.errors import InvalidRequest, Unavailable, in_utf8
from serving.folders import identity
from serving.paths import is_file
from serving.photo_paths import is_photo, photo_paths
from serving.whole_file import created, is_temporary, replaced

# Why S3 refuses one object, not the caller: it may not be read, or lies in an archive.
_REFUSES_OBJECT = ("AccessDenied", "InvalidObjectState")

# Of a folder's files: what may be the matter with one alone.
_OF_ONE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ENXIO, errno.EFBIG),
    }
)


class Place(Protocol):
    """Keys are relative POSIX paths. Raises OSError, Unavailable where it can't be used."""

    location: str  # the same one for each way to write it with or without a slash at its end

    def photos(self) -> dict[str, str]:
        """All photos, told by the ends of their names, in a fixed order: their keys, each with a
        stamp that is another one for another content. Raises InvalidRequest if there are none."""

    def read(self, key: str) -> bytes:
        """Raises OSError where this one file can't be read, Unavailable where none can."""

    def files(self) -> set[str]:
        """Every key, but for what is not yet written whole."""

    def write(self, key: str, data: bytes) -> None:
        """Whole or not at all."""

    def create(self, key: str, data: bytes) -> bool:
        """As write, but False if the key is there."""


class Folder:
    def __init__(self, root: Path) -> None:
        self.location = str(root)
        self._root = root
        self._found: tuple[int, int] | None = None  # device and inode of the root

    def photos(self) -> dict[str, str]:
        self._check()
        in_utf8("the name", self.location, "rename it")
        self._found = identity(self._root)
        return {self._key(path): _stamp_of(path) for path in photo_paths([self._root])}

    def read(self, key: str) -> bytes:
        try:
            return file_bytes(self._root / key)
        except OSError as error:
            moved = self._found is not None and self._found != identity(self._root)
            if moved or error.errno not in _OF_ONE_FILE:
                why = "it is gone, or another" if moved else str(error)
                raise Unavailable(f"{self._root} can't be read now: {why}") from error
            raise

    def files(self) -> set[str]:
        self._check()
        paths = (path for path in self._root.rglob("*") if is_file(path))
        return {path.relative_to(self._root).as_posix() for path in paths if not is_temporary(path)}

    def write(self, key: str, data: bytes) -> None:
        with replaced(self._root / key, mode=0o644) as file:
            file.write(data)

    def create(self, key: str, data: bytes) -> bool:
        return created(self._root / key, data, mode=0o644)

    def _check(self) -> None:
        # Not those of Path, which raise where one may not look: what comes next says that.
        if os.path.exists(self._root) and not os.path.isdir(self._root):
            raise InvalidRequest(f"{self._root} is a file; with --out it must be a folder")

    def _key(self, path: Path) -> str:
        key = path.relative_to(self._root).as_posix()
        in_utf8("the name", key, "rename it")
        return key


class BucketPlace:
    def __init__(self, bucket: Bucket) -> None:
        self.location = bucket.location
        self._bucket = bucket
        self.write = bucket.write
        self.create = bucket.create

    def photos(self) -> dict[str, str]:
        found = {
            key: f"{stored.size} {stored.stamp}"
            for key, stored in sorted(self._bucket.stored().items())
            if is_photo(PurePosixPath(key))
        }
        if not found:
            none = f"no photos in {self._bucket.location}"
            if is_photo(PurePosixPath(self._bucket.location)):
                none += "; with --out it takes what lies below, not one photo"
            raise InvalidRequest(none)
        return found

    def read(self, key: str) -> bytes:
        try:
            return self._bucket.read(key)
        except Unavailable as error:
            refusal = error.__cause__
            if s3_code(refusal) in _REFUSES_OBJECT:
                raise PermissionError(str(refusal)) from error
            raise

    def files(self) -> set[str]:
        return set(self._bucket.sizes())


def place(location: str) -> Place:
    """Raises InvalidRequest for a bucket of no known kind."""
    if "://" in location:
        return BucketPlace(Bucket(location))
    return Folder(Path(location))


def _stamp_of(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"

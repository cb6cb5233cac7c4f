"""A prefix of an object store (s3://, gs://, az://) through fsspec, with our own few errors.

Credentials come from the environment alone, as each store's own tools read them
(AWS_ACCESS_KEY_ID or a role, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from serving.conditional_write import replace_if
from serving.errors import InvalidRequest, Unavailable, lacks

# scheme -> (fsspec's package, the extra that installs it)
SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "az": ("adlfs", "az")}
# What each store calls an object's stamp.
_STAMPS = ("generation", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated")
# What S3 says where a condition of a write does not hold, or another write goes on.
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")
# Of s3fs, around the five attempts of botocore, and squared where an object is read: with its own 5
# a store that takes connections and never answers is waited for half an hour.
_S3_RETRIES = 2
_ANSWERS = 3  # of one object, where each breaks off
_CUT = ("ClientPayloadError", "FlexibleChecksumError")
_NO_BUCKET = "there is no such bucket"
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Stored:
    size: int  # bytes
    stamp: str  # another one for another content; empty where the store has none


class Bucket:
    """Keys are relative to the prefix. Every method raises Unavailable if the store can't be used.

    Listings are never cached: what another process has just written is seen.
    """

    def __init__(self, location: str) -> None:
        scheme, _, rest = location.partition("://")
        if scheme not in SCHEMES:
            known = ", ".join(f"{s}://" for s in SCHEMES)
            raise InvalidRequest(f"{location}: a bucket is one of {known}")
        if not rest.strip("/") or "@" in rest or "?" in rest:
            raise InvalidRequest(
                f"a bucket is named {scheme}://BUCKET/PREFIX, and credentials come from the "
                "environment alone"
            )
        package, extra = SCHEMES[scheme]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidRequest(lacks(f"{scheme}://", package, error, extra)) from error
        self.location = f"{scheme}://{rest.strip('/')}"
        self._root = rest.strip("/")
        self._scheme = scheme
        with self._refused():
            self._files = _filesystem(scheme)
        self._whole = _whole(scheme, self._files)

    def stored(self, prefix: str = "", *, deep: bool = True) -> dict[str, Stored]:
        """The objects below the prefix, however deep or right below it: their keys below it."""
        root = self._path(prefix)
        look = self._files.find if deep else self._files.ls
        try:
            with self._refused():
                found = look(root, detail=True)
                if not found and self._scheme == "az":
                    self._files.ls(root)  # `find` finds nothing where there is no container, too
        except FileNotFoundError:
            return {}
        entries = list(found.values()) if deep else found
        return {
            key: Stored(size=int(e["size"]), stamp=_stamp(e))
            for e in entries
            # An emptied prefix may still be there, as an object of its own.
            # One slash alone: with two the second belongs to the key.
            if not _is_folder(e) and (key := e["name"][len(root) :].removeprefix("/"))
        }

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every object below the prefix, however deep: its key below it -> bytes."""
        return {key: stored.size for key, stored in self.stored(prefix).items()}

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._bytes(key, **self._whole)

    def chunks(self, key: str, start: int, size: int) -> Iterator[bytes]:
        """The bytes from `start` to `size`, in pieces. Raises FileNotFoundError."""
        while start < size:
            end = min(start + CHUNK_BYTES, size)
            data = self._bytes(key, start=start, end=end)
            if not data:
                return
            yield data
            start += len(data)

    def write(self, key: str, data: bytes) -> None:
        with self._written():
            self._files.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that is not there yet, in one step; False if it is there."""
        return self._unless_taken(
            lambda: self._files.pipe_file(self._path(key), data, mode="create")
        )

    def stamp(self, key: str) -> str:
        """Of one object; empty where there is none."""
        try:
            with self._refused():
                return _stamp(self._files.info(self._path(key)))
        except FileNotFoundError:
            return ""

    def replace(self, key: str, data: bytes, stamp: str) -> bool:
        """Write an object if this still is its stamp, in one step; False if it is not."""
        if not stamp:
            return self.create(key, data)
        path = self._path(key)
        return self._unless_taken(lambda: replace_if(self._scheme, self._files, path, data, stamp))

    def upload(self, file: Path, key: str) -> None:
        with self._written():
            self._files.put_file(str(file), self._path(key))

    def delete(self, keys: list[str]) -> None:
        with self._refused():
            for key in keys:
                self._files.rm_file(self._path(key))

    def _bytes(self, key: str, **how: int) -> bytes:
        """An answer that breaks off, or comes no further, is asked for again."""
        left = _ANSWERS
        while True:
            left -= 1
            with self._refused():
                try:
                    data: bytes = self._files.cat_file(self._path(key), **how)
                    return data
                except Exception as error:
                    if not left or not _is_cut(error):
                        raise

    def _unless_taken(self, write: Callable[[], Any]) -> bool:
        with self._written():
            try:
                write()
            except Exception as error:
                if _is_taken(error):
                    return False
                raise
        return True

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """FileNotFoundError of an object passes; all else that a store's library raises is
        Unavailable."""
        try:
            yield
        except Exception as error:  # each store has exceptions of its own, with no common base
            if isinstance(error, FileNotFoundError) and not self._lacks_bucket(error):
                raise
            raise Unavailable(f"{self.location} can't be used: {self._reason(error)}") from error

    def _lacks_bucket(self, error: FileNotFoundError) -> bool:
        """And not an object alone. Google says so of listings, which name what is listed."""
        return (
            s3_code(error) == "NoSuchBucket"
            or getattr(error.__context__, "error_code", None) == "ContainerNotFound"
            or str(error) == f"b/{self._root.partition('/')[0]}/o"
        )

    def _reason(self, error: Exception) -> str:
        if isinstance(error, FileNotFoundError):
            return _NO_BUCKET
        # What follows the first line is for the store's own support.
        text = str(getattr(error, "strerror", None) or error).strip()
        if not text and isinstance(error, TimeoutError):
            text = "it does not answer in time"
        reason = next(iter(text.splitlines()), type(error).__name__)[:300]
        # Of S3: what may be done there is granted for each operation alone.
        operation = getattr(error.__cause__, "operation_name", None)
        return f"{reason} ({operation})" if operation and operation not in reason else reason

    @contextmanager
    def _written(self) -> Iterator[None]:
        """As `_refused`; what a write does not find is the bucket."""
        with self._refused():
            try:
                yield
            except FileNotFoundError as error:
                raise OSError(_NO_BUCKET) from error


def _filesystem(scheme: str) -> Any:
    if scheme == "gs":
        # Not the class that fsspec knows by this name: that one asks the store over gRPC what kind
        # of bucket it is before each call, and warns each time where it may not ask.
        from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped,unused-ignore]

        # What it logs as an error, with a traceback, it raises as well.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        return GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
    import fsspec  # type: ignore[import-untyped,unused-ignore]

    # Thirty lines of each request that a server makes, many at each look for new versions.
    logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
    own = {"session": _s3_session()} if scheme == "s3" else {}
    files = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **own)
    if scheme == "s3":
        files.retries = _S3_RETRIES
    return files


def _s3_session() -> Any:
    """Writes without `Expect: 100-continue`: aiohttp waits for that answer without end."""
    from aiobotocore.session import AioSession  # type: ignore[import-untyped,unused-ignore]
    from botocore.handlers import add_expect_header  # type: ignore[import-untyped,unused-ignore]

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    return session


def _whole(scheme: str, files: Any) -> dict[str, int]:
    """What makes the read of an object one request: a newer s3fs asks for the size first, to read
    large ones in parts."""
    parts = scheme == "s3" and "max_concurrency" in signature(files._cat_file).parameters
    return {"max_concurrency": 1} if parts else {}


def _is_taken(error: Exception) -> bool:
    """The object is there, or another one than was asked for.

    S3 says so in the error beneath that of s3fs, which calls it an invalid argument; adlfs lets
    Azure's own error pass.
    """
    return (
        isinstance(error, FileExistsError)
        or s3_code(error) in _TAKEN
        or getattr(error, "error_code", None) == "ConditionNotMet"
    )


def _is_cut(error: Exception) -> bool:
    """Or altered on the way. By name: these are errors of what the store's library is made of."""
    return isinstance(error, TimeoutError) or type(error).__name__ in _CUT


def s3_code(error: BaseException | None) -> str | None:
    """What S3 calls the error, of which s3fs makes one of Python; None: it is none of S3's."""
    response = getattr(error and error.__cause__, "response", None)
    # Azure's errors have a response, too, of another kind.
    code: str | None = response.get("Error", {}).get("Code") if type(response) is dict else None
    return code


def _is_folder(entry: dict[str, Any]) -> bool:
    """Consoles and some tools make an empty object of a folder, whose name ends with a slash."""
    return bool(entry["type"] == "directory" or (entry["name"][-1:] == "/" and not entry["size"]))


def _stamp(entry: dict[str, Any]) -> str:
    return next((str(entry[name]) for name in _STAMPS if entry.get(name)), "")

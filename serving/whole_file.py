"""Files that are replaced in one step: a reader finds the old content or the new, never half."""

import errno
import glob
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_PREFIX, _SUFFIX = ".", ".tmp"
_NAMED = 100  # characters of a file's name in that of the one that is to replace it
_LEFT = 3600.0  # seconds after its last change at which none is being written any more
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@contextmanager
def names_disk(place: Path) -> Iterator[None]:
    """An error of a disk that is full or fails says where that is: one of writing to an open file
    does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_A_DISK:
            error.filename = str(place)
        raise


@contextmanager
def replaced(path: Path, *, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """What is written takes the place of `path`, on the disk, at the end; after an error nothing
    of it is left. Makes the folder. `mode`: the file's, its owner's alone unless given. Raises
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_PREFIX}{path.name[:_NAMED]}-"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=_SUFFIX)
    try:
        with names_disk(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def sweep(path: Path) -> None:
    """Remove what processes killed within `replaced(path)` have left, as far as that can be."""
    pattern = f"{_PREFIX}{glob.escape(path.name[:_NAMED])}-*{_SUFFIX}"
    remove_old(path.parent.glob(pattern), _LEFT)


def remove_old(paths: Iterable[Path], age_s: float) -> None:
    """Remove those files and folders that were last changed longer ago than that. What can't be
    removed stays."""
    for path in paths:
        with suppress(OSError):  # another process was faster; another user's; a read-only disk
            if time.time() - path.stat().st_mtime > age_s:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def created(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """As `replaced`, but False if `path` is there: of several at once, one writes it.

    Where the file system has no hard links, the last of several does.
    """
    own = path.with_name(f"{_PREFIX}{path.name}-{uuid.uuid4().hex}{_SUFFIX}")
    with replaced(own, mode=mode) as file:
        file.write(data)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
    return True


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file is written or replaced; None while there is none that can be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def is_temporary(path: Path) -> bool:
    """Whether it is, or was left by, a file of ours that is being written."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)

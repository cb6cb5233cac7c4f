"""One process at a time, of several that share a folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from serving.errors import Unavailable

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of NFS and Lustre, mounted without


@contextmanager
def alone(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on `file`, which is made, until the end. Raises OSError; BlockingIOError if
    another holds it and this is not to `wait`. Where the file system has no locks, it holds none:
    better than that nothing can be done there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


@contextmanager
def only_one(file: Path, doing: str) -> Iterator[None]:
    """As `alone`, but raises Unavailable if another process is `doing` that."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(file, wait=False))
        except BlockingIOError as error:
            raise Unavailable(f"another process is {doing}; wait for it") from error
        yield

"""One process at a time, of several that share a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on `file`, which is made, until the end. Raises OSError; BlockingIOError if
    another holds it and this is not to `wait`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

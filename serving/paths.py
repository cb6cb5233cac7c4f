"""What is at a path, or an error where that can't be known: where nobody may look, or a disk does
not answer. From Python 3.14 on Path's own methods say then that nothing is there.
"""

import errno
import stat
from pathlib import Path

_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def exists(path: Path) -> bool:
    """Raises OSError."""
    return _mode(path) != 0


def is_dir(path: Path) -> bool:
    """Raises OSError."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Raises OSError."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    """0 where nothing is."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return 0
        raise
    except ValueError:  # a NUL, which no name has
        return 0

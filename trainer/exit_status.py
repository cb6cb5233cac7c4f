"""What the commands of the trainer end with where they fail."""

import errno
import sys

from serving.errors import Unavailable
from serving.visible import visible
from trainer.errors import FailedCheck

FAILED = 1  # a check or a gate; and what nobody expected, as of any Python program
WRONG = 2  # the user's mistake: the same again fails again
MAY_PASS = 75  # EX_TEMPFAIL of sysexits.h: the same again may succeed

_NEVER_PASSES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG),
}


def status_of(error: Exception) -> int:
    """error: a PawprintError or an OSError."""
    if isinstance(error, FailedCheck):
        return FAILED
    if not isinstance(error, (Unavailable, OSError)):
        return WRONG
    known = error if isinstance(error, OSError) else error.__cause__
    never = isinstance(known, OSError) and known.errno in _NEVER_PASSES
    return WRONG if never else MAY_PASS


def failed(message: str, status: int) -> int:
    """Say it on stderr; returns the status."""
    print(f"error: {visible(message)}", file=sys.stderr)
    return status


def fail(error: Exception) -> int:
    """Say on stderr what a PawprintError or an OSError is, and where; returns the status."""
    said = str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        said = f"{place}{error.strerror or error}"
    return failed(said, status_of(error))

"""What the commands of the trainer end with where they fail."""

import errno

from serving.errors import Unavailable
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
    if isinstance(error, Unavailable):
        return MAY_PASS
    if isinstance(error, OSError) and error.errno not in _NEVER_PASSES:
        return MAY_PASS
    return WRONG

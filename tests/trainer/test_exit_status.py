"""What a scheduler is told: whether the same command may succeed the next time."""

import errno

import pytest

from serving.errors import BrokenVersion, InvalidRequest, NotFound, Unavailable
from trainer.analysis.over_grpc import ServerFailed
from trainer.errors import FailedCheck, InvalidData
from trainer.exit_status import status_of


def because(error: Exception, cause: OSError) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FailedCheck("the loss is no number"), 1),
        (InvalidRequest("no such flag"), 2),
        (InvalidData("no photos"), 2),
        (NotFound("no model"), 2),
        (BrokenVersion("altered"), 2),
        (PermissionError(errno.EACCES, "Permission denied"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 2),
        (OSError(errno.EROFS, "Read-only file system"), 2),
        (Unavailable("the bucket does not answer"), 75),
        (ServerFailed("localhost:1 does not answer"), 75),
        (because(Unavailable("the cache"), OSError(errno.EROFS, "Read-only file system")), 2),
        (because(Unavailable("the cache"), OSError(errno.ENOSPC, "No space left")), 75),
        (OSError(errno.ENOSPC, "No space left on device"), 75),
        (OSError(errno.ESTALE, "Stale file handle"), 75),
        (TimeoutError(), 75),
    ],
)
def test_what_may_pass_is_75(error: Exception, status: int):
    assert status_of(error) == status

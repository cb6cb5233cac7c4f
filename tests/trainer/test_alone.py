"""One process at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from serving.errors import Unavailable
from trainer.alone import only_one


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock", "counting"):
        with pytest.raises(Unavailable, match="another process is counting"):
            with only_one(tmp_path / "lock", "counting"):
                pass
    with only_one(tmp_path / "lock", "counting"):
        pass


def test_where_there_are_no_locks_the_work_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS without its lock daemon, which is not to be had here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path / "lock", "counting"):
        pass

"""What appears in one step, or takes another's place, and lies on the disk when that is told."""

import ctypes
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from serving.whole_file import replaced

log = logging.getLogger(__name__)

_TRIES = 100  # to make a folder that others may remove at any moment


def new_folder(parent: Path, prefix: str) -> Path:
    """A folder of its own in `parent`, which is made where it is missing. Raises OSError."""
    for tries_left in reversed(range(_TRIES)):
        try:
            shared_folder(parent)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except (FileNotFoundError, FileExistsError):
            # Another publisher ended, found it empty and removed it, maybe within mkdir.
            if not tries_left:
                raise
        else:
            folder.chmod(0o755)
            break
    return folder


def shared_folder(folder: Path) -> None:
    """Make it, and what is missing above, for every user to read and enter, whatever the umask: as
    make_ready has what will lie in it. One that is there stays as it is. Raises OSError."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        with suppress(PermissionError):  # another user made it meanwhile
            one.chmod(stat.S_IMODE(one.stat().st_mode) | 0o555)


def make_ready(folder: Path) -> None:
    """For the rename that publishes it: all that lies below is on the disk, and every user may read
    it, as a server often is another one than who trained; some libraries make files that are their
    owner's alone."""
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | (0o555 if path.is_dir() else 0o444)
        if mode != wanted:
            path.chmod(wanted)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """fsync one file, or the entries of one folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(folder: Path) -> None:
    """fsync the entries of a folder after a rename. Where that fails it is logged: what was renamed
    is seen, and an error would look as if it were not."""
    try:
        sync(folder)
    except OSError as error:
        log.warning(
            "what was just written in %s is there, but a loss of power may undo it: %s",
            folder, error,
        )  # fmt: skip


def replace_file(path: Path, data: bytes) -> None:
    """Its old content or the new, never half, for every user to read."""
    with replaced(path, mode=0o644) as file:
        file.write(data)
    settle(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step (renameat2 of Linux), so that a reader never finds neither."""
    at_cwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap and swap(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0:
        return
    # Another system, or a file system that can't: two renames, a moment apart.
    aside = one.with_name(one.name + "-aside")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)

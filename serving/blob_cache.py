"""Files from elsewhere, kept on this machine under their digest.

<root>/sha256/<digest>    whole, and so never changed
<root>/partial/<digest>   as far as a download has come; the next one goes on from there
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.errors import BrokenVersion, InvalidRequest, Unavailable
from serving.modelspec import FileEntry
from serving.whole_file import remove_old

# From an offset to the end, in pieces.
Download = Callable[[int], Iterator[bytes]]

LIMIT = "PAWPRINT_CACHE_GB"
UNUSED_S = 30 * 24 * 3600.0
_IN_USE_S = 60.0  # whoever has just fetched a file may not have opened it yet


class BlobCache:
    """Safe for many processes at once: one downloads, the others wait for it."""

    def __init__(self, root: Path, most_bytes: int | None = None) -> None:
        """most_bytes: of whole files; None: no bound but their age."""
        self.root = root
        self._most_bytes = most_bytes

    def fetch(self, entry: FileEntry, where: str, download: Download) -> Path:
        """The file with this digest; what is missing of it is downloaded.

        Raises BrokenVersion if what is downloaded does not match, Unavailable if there is no room
        for it here, and what `download` raises, which is no OSError: then the part that came is
        kept.
        """
        whole = self.root / "sha256" / entry.sha256
        part = self.root / "partial" / entry.sha256
        with usable(self.root):
            for folder in (whole.parent, part.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with _lock(part.with_name(f"{entry.sha256}.lock")):
                # Marked first: another process that prunes leaves alone what is being checked here.
                here = _used_now(whole) and _is_whole(whole, entry) and _used_now(whole)
                if not here:
                    resumed = part.exists()
                    sound = _completed(part, entry, download)
                    if resumed and not sound:  # what lay here may be what is damaged
                        sound = _completed(part, entry, download)
                    if not sound:
                        raise BrokenVersion(f"{where} is altered: it does not match its digest")
                    os.utime(part)
                    os.replace(part, whole)
            if not here:  # a server may run for longer than a month
                self.prune()
        return whole

    def prune(self) -> None:
        """Remove what has not been used for a month, and of what is above the bound that which was
        used longest ago; a file that is open stays readable, one that is gone is downloaded again.
        What can't be removed stays, as on a disk that is read-only.
        """
        remove_old((*self.root.glob("sha256/*"), *self.root.glob("partial/*")), UNUSED_S)
        if self._most_bytes is None:
            return
        left = self._most_bytes
        for used, size, file in sorted(_files(self.root / "sha256"), reverse=True):
            left -= size
            if left < 0 and time.time() - used > _IN_USE_S:
                with suppress(OSError):
                    file.unlink()


@contextmanager
def usable(root: Path) -> Iterator[None]:
    """Raises Unavailable where the disk of the cache is full, read-only or broken, or is gone."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the cache {root} can't be used: {error.strerror or error}; free space there, or set "
            "PAWPRINT_CACHE to another folder"
        ) from error


def default_cache(environment: Mapping[str, str]) -> Path:
    """PAWPRINT_CACHE, else pawprint in the user's folder for caches (XDG base directories)."""
    given = environment.get("PAWPRINT_CACHE")
    if given:
        return Path(given)
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/tmp")) / ".cache"
    return Path(base) / "pawprint"


def limit_of(environment: Mapping[str, str], variable: str) -> int | None:
    """Bytes, of a variable in GB; None where it is not set. Raises InvalidRequest."""
    text = environment.get(variable)
    if text is None:
        return None
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise InvalidRequest(f"{variable} must be a number, 0 or more, got {text!r}")
    return limit


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(when it was last used, bytes, path) of each."""
    found = []
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # another process prunes too
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    return found


def _completed(part: Path, entry: FileEntry, download: Download) -> bool:
    """Whether it matches its digest, with what was missing; if not, it is removed."""
    have = part.stat().st_size if part.exists() else 0
    if have > entry.size:
        part.unlink()
        have = 0
    with part.open("ab") as file:
        for data in download(have):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if _is_whole(part, entry):
        return True
    part.unlink()
    return False


def _used_now(path: Path) -> bool:
    """Marks it so; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _is_whole(path: Path, entry: FileEntry) -> bool:
    try:
        with path.open("rb") as file:
            return (
                path.stat().st_size == entry.size
                and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            )
    except FileNotFoundError:
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """A disk without locks is refused: two downloads at once would end up mixed in one file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

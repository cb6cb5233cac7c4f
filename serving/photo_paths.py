"""Which photos the arguments of `classify` name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from serving.errors import InvalidRequest
from serving.preprocess import ENDINGS


def photo_paths(arguments: Iterable[Path]) -> Sequence[Path]:
    """Files as given; of a folder all photos below it, sorted, told by the ends of their names.

    Raises InvalidRequest for a path that is not there, for a folder without photos and for one that
    may not be read: its photos would be missing, and nobody would know.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument.exists():
            raise InvalidRequest(f"no such file or folder: {argument}")
        if not argument.is_dir():
            found.append(argument)
            continue
        photos = sorted(
            path for path in _below(argument) if path.suffix.lower() in ENDINGS and path.is_file()
        )
        if not photos:
            raise InvalidRequest(
                f"no photos in {argument}; known endings: {' '.join(sorted(ENDINGS))}"
            )
        found += photos
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Every entry, however deep, that is no folder."""

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            return  # removed meanwhile
        if isinstance(error, PermissionError):
            raise InvalidRequest(f"{error.filename} can't be read: {error.strerror}") from error
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        if "lost+found" in folders:  # of a disk that is mounted here; nobody but root may read it
            folders.remove("lost+found")
        yield from (Path(parent, name) for name in files)

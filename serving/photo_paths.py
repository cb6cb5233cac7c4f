"""Which photos the arguments of `classify` name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from serving.errors import InvalidRequest
from serving.preprocess import ENDINGS


def photo_paths(arguments: Iterable[Path]) -> Sequence[Path]:
    """Files as given; of a folder all photos below it, sorted, told by the ends of their names.

    Raises InvalidRequest for a path that is not there, for a folder without photos and for one
    whose entries may not be read: its photos would be missing, and nobody would know.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument.exists():
            raise InvalidRequest(f"no such file or folder: {argument}")
        if not argument.is_dir():
            found.append(argument)
            continue
        try:
            photos = sorted(
                path
                for path in _below(argument)
                if path.suffix.lower() in ENDINGS and path.is_file()
            )
        except PermissionError as error:
            raise InvalidRequest(f"{error.filename} can't be read: {error.strerror}") from error
        if not photos:
            raise InvalidRequest(
                f"no photos in {argument}; known endings: {' '.join(sorted(ENDINGS))}"
            )
        found += photos
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Every entry, however deep, that is no folder. Raises OSError for a folder that can't be read,
    but for one that was removed meanwhile, and a disk's own lost+found, which is for root alone.
    """

    def refuse(error: OSError) -> None:
        of_the_disk = Path(error.filename).name == "lost+found"
        if isinstance(error, FileNotFoundError) or (
            isinstance(error, PermissionError) and of_the_disk
        ):
            return
        raise error

    for parent, _, files in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in files)

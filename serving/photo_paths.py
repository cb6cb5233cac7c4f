"""Which photos the arguments of `classify` name."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from serving.errors import InvalidRequest
from serving.preprocess import ENDINGS


def photo_paths(arguments: Iterable[Path]) -> Sequence[Path]:
    """Files as given; of a folder all photos below it, sorted, told by the ends of their names.

    Raises InvalidRequest for a path that is not there and for a folder without photos.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument.exists():
            raise InvalidRequest(f"no such file or folder: {argument}")
        if not argument.is_dir():
            found.append(argument)
            continue
        photos = sorted(
            path
            for path in argument.rglob("*")
            if path.suffix.lower() in ENDINGS and path.is_file()
        )
        if not photos:
            raise InvalidRequest(
                f"no photos in {argument}; known endings: {' '.join(sorted(ENDINGS))}"
            )
        found += photos
    return found

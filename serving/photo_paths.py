"""Which photos the arguments of `classify` name."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from serving.errors import InvalidRequest
from serving.folders import walk
from serving.paths import exists, is_dir, is_file
from serving.photo_formats import ENDINGS


def photo_paths(arguments: Iterable[Path]) -> Sequence[Path]:
    """Files as given; of a folder all photos below it, sorted, told by the ends of their names.

    Raises InvalidRequest for a path that is not there, or lies where nobody may look, for a folder
    without photos and for one whose entries may not be read: its photos would be missing, and
    nobody would know.
    """
    found: list[Path] = []
    for argument in arguments:
        try:
            if not exists(argument):
                raise InvalidRequest(f"no such file or folder: {argument}")
            if not is_dir(argument):
                found.append(argument)
                continue
            photos = sorted(_photos_below(argument))
        except PermissionError as error:
            raise InvalidRequest(f"{error.filename} can't be read: {error.strerror}") from error
        if not photos:
            raise InvalidRequest(
                f"no photos in {argument}; known endings: {' '.join(sorted(ENDINGS))}"
            )
        found += photos
    return found


def is_photo(path: PurePosixPath) -> bool:
    """By its name, relative to where it was looked for. Hidden ones are passed over, as `train`
    does: macOS lays a ._one.jpg, which is no photo, beside each one.jpg."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in ENDINGS


def _photos_below(root: Path) -> Iterator[Path]:
    """Raises OSError for a folder that can't be read, but for one that was removed meanwhile, and a
    disk's own lost+found, which is for root alone.
    """

    def refuse(error: OSError) -> None:
        of_the_disk = Path(error.filename).name == "lost+found"
        if isinstance(error, FileNotFoundError) or (
            isinstance(error, PermissionError) and of_the_disk
        ):
            return
        raise error

    for path in walk(root, refuse, upwards=lambda folder: None):
        if is_photo(PurePosixPath(path.name)) and is_file(path):
            yield path

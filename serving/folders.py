"""The files below a folder: their names, nothing is opened."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(
    root: Path, refuse: Callable[[OSError], None], upwards: Callable[[Path], None]
) -> Iterator[Path]:
    """In no order, but for hidden ones. Links to folders are followed, not in circles: each folder
    is looked through once, by the first of its names.

    refuse: told of a folder that can't be read; upwards: of a link to a folder that `root` lies in.
    What they raise ends it; else such a folder is passed over.
    """
    above = {identity(folder) for folder in root.resolve().parents} - {None}
    seen: set[tuple[int, int] | None] = {None}
    for parent, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        shown = [Path(parent, name) for name in sorted(folders) if not name.startswith(".")]
        folders.clear()
        this = identity(Path(parent))
        if this in seen:
            continue
        seen.add(this)
        for folder in shown:
            if identity(folder) in above:
                upwards(folder)
            else:
                folders.append(folder.name)
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def identity(folder: Path) -> tuple[int, int] | None:
    """Another one where something else is mounted there; None if it was removed meanwhile, or may
    not be looked at: then it can't be read either."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""Tar files written member by member, good and bad."""

import io
import tarfile
from pathlib import Path

from tests.photos import jpeg


def write_tar(
    path: Path,
    members: dict[str, bytes] | list[tuple[str, bytes]],
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(
    first: int, labels: tuple[str, ...] = ("cat", "dog"), ending: str = "cls"
) -> dict[str, bytes]:
    """A small photo for each label, with keys that count from `first`."""
    members = {}
    for i, label in enumerate(labels, first):
        members[f"{i:06}.jpg"] = jpeg(seed=i)
        members[f"{i:06}.{ending}"] = label.encode()
    return members

"""Photos into WebDataset shards: which photo goes where under which key, and the tar files."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from serving.paths import is_file
from serving.photo_formats import ENDINGS
from trainer.screening import LeftOut, photo_size, why_no_file
from trainer.tree import SPLITS, Found

_BLOCK = 512
_END = 20 * _BLOCK  # tarfile fills a file up to whole records


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A photo and the key of its sample."""

    key: str  # no dot in its last part
    ending: str  # .jpg
    found: Found
    room: int  # bytes that its members take in a tar file


def name_entries(found: Sequence[Found]) -> tuple[list[Entry], list[LeftOut]]:
    """Photos with keys of their own, in the order of `found`, and what is no photo.

    A key is the photo's name without its ending, with _ for any other dot, and with a number behind
    it where another photo has that key.
    """
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    taken: set[str] = set()
    for each in found:
        path = PurePosixPath(each.file)
        fault = each.fault or _fault(each)
        if fault is not None:
            left_out.append(LeftOut(file=each.file, reason=fault))
            continue
        wanted = key = str(path.with_name(path.stem.replace(".", "_")))
        number = 2
        while key in taken:
            key, number = f"{wanted}_{number}", number + 1
        taken.add(key)
        room = 3 * _BLOCK + -(-photo_size(each.path) // _BLOCK) * _BLOCK
        entries.append(Entry(key=key, ending=path.suffix, found=each, room=room))
    return entries, left_out


def _fault(found: Found) -> str | None:
    """Why it can't be written, which is to be known before half of the others are."""
    if PurePosixPath(found.file).suffix.lower() not in ENDINGS:
        return "its name does not end as a photo's does"
    if isinstance(found.path, Path):
        try:
            if not is_file(found.path):
                return why_no_file(found.path)
            found.path.open("rb").close()
        except OSError as error:
            return f"can't be read: {error.strerror or error}"
    return None


def divide(entries: Sequence[Entry], most: int) -> dict[str, list[Entry]]:
    """Name of a shard -> its photos: files of at most so many bytes, but for a photo larger alone.

    The photos of a shard are drawn from all of its split, so that a reader that takes one shard
    after the other sees every class all the time.
    """
    shards: dict[str, list[Entry]] = {}
    generator = np.random.default_rng(0)
    for split in (None, *SPLITS):
        members = [entry for entry in entries if entry.found.split == split]
        number, room, name = 0, 0, ""
        for i in generator.permutation(len(members)).tolist():
            if members[i].room > room:
                name, number, room = f"{split or 'photos'}-{number:06}.tar", number + 1, most - _END
                shards[name] = []
            shards[name].append(members[i])
            room -= members[i].room
    return shards


def write_shard(path: Path, entries: Sequence[Entry], labels: Sequence[str]) -> None:
    """The same photos and labels give the same bytes. Raises OSError, Unavailable."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            number = str(labels.index(entry.found.label)).encode()
            for ending, data in ((entry.ending, entry.found.path.read_bytes()), (".cls", number)):
                member = tarfile.TarInfo(entry.key + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

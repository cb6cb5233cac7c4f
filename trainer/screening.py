"""Open every file whole before the training starts: what can't be used is named and left out."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidImage
from serving.paths import is_file
from trainer.pictures import Photo
from trainer.shard_places import Member
from trainer.tree import Found

_MAX_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Usable:
    found: Found
    digest: str  # sha256 of its bytes, hex

    def photo(self, label: int) -> Photo:
        return Photo(path=self.found.path, file=self.found.file, label=label, digest=self.digest)


def screen(
    files: Sequence[Found], decode: Callable[[bytes, str], object], workers: int
) -> Iterator[Usable | LeftOut]:
    """Read and decode each file, in order.

    decode: called by `workers` threads with the bytes and the digest of each; raises InvalidImage.
    """

    def look(found: Found) -> Usable | LeftOut:
        if found.fault is not None:
            return LeftOut(file=found.file, reason=found.fault)
        try:
            if isinstance(found.path, Path) and not is_file(found.path):
                return LeftOut(file=found.file, reason=why_no_file(found.path))
            if photo_size(found.path) > _MAX_BYTES:
                return LeftOut(file=found.file, reason=f"larger than {_MAX_BYTES >> 20} MiB")
            data = found.path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            decode(data, digest)
            return Usable(found=found, digest=digest)
        except InvalidImage as error:
            return LeftOut(file=found.file, reason=str(error))
        except OSError as error:
            return LeftOut(file=found.file, reason=f"can't be read: {error.strerror or error}")

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(look, files)
        finally:
            pool.shutdown(cancel_futures=True)


def why_no_file(path: Path) -> str:
    """A table may name what is not there: then it must be said where that was looked for."""
    if os.path.lexists(path):
        return "not a regular file, or a dangling link"
    return f"there is no file {path.absolute()}"


def photo_size(path: Path | Member) -> int:
    """Bytes. Raises OSError."""
    return path.size if isinstance(path, Member) else path.stat().st_size


def drop_duplicates(usable: Sequence[Usable]) -> tuple[list[Usable], list[LeftOut]]:
    """Keep each content once, so that no test photo is trained on.

    The copy in test is kept before that in val, and that before the one in train: a given test set
    stays as it is. Copies within one split go too, and copies under two labels are named.
    """
    order = {"test": 0, "val": 1, "train": 2, None: 2}
    first: dict[str, Usable] = {}
    for item in sorted(usable, key=lambda u: order[u.found.split]):  # stable: by name within
        first.setdefault(item.digest, item)
    kept, left_out = [], []
    for item in usable:
        original = first[item.digest]
        if original is item:
            kept.append(item)
            continue
        other = original.found.label != item.found.label
        note = f", under another label ({original.found.label})" if other else ""
        reason = f"duplicate: same content as {original.found.file}{note}"
        left_out.append(LeftOut(file=item.found.file, reason=reason))
    return kept, left_out

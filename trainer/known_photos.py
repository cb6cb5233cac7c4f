"""Photos that a version has been trained on, as their content or their names say."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from serving.layout import MANIFEST
from serving.modelspec import Manifest
from serving.repository import Repository
from trainer.pictures import Photo
from trainer.tree import SPLITS, split_of

SPLIT = "split.json"
# Of a version: its SPLIT, {} without one. Part -> label -> files, and DIGESTS -> part -> digests of
# the same photos; versions of before have none.
Split = Mapping[str, Mapping[str, Sequence[str]]]
DIGESTS = "digests"
NO_SPLIT: Split = {}


def split_beside(weights: str) -> Split:
    """That of the version whose file the weights are; {} where they are of no version."""
    path = Path(weights)
    if not path.is_file() or not path.with_name(MANIFEST).is_file():
        return {}
    try:
        split: Split = json.loads(path.with_name(SPLIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return split


def short_digest(photo: Photo) -> str:
    """Of its bytes, as a split has it: enough to tell photos apart."""
    return photo.digest[:16]


def split_in(repository: Repository, manifest: Manifest) -> Split:
    """{} where the version has none. Raises BrokenVersion."""
    if SPLIT not in manifest.files:
        return {}
    split: Split = json.loads(repository.read_file(manifest, SPLIT))
    return split


def part_in(split: Split) -> Callable[[Photo], str | None]:
    """In which part a photo was, as its content says, else its name; None where it was in none."""
    by_digest = {
        digest: part for part, digests in split.get(DIGESTS, {}).items() for digest in digests
    }
    by_name = {file: part for part in SPLITS for file in files_of(split, part)}
    return lambda photo: by_digest.get(short_digest(photo)) or by_name.get(photo.file)


def files_of(split: Split, *parts: str) -> set[str]:
    return {file for part in parts for files in split.get(part, {}).values() for file in files}


def count_known(photos: Iterable[Photo], split: Split) -> int:
    """How many the version of this split was trained or validated on."""
    return sum(map(known_to(split), photos))


def known_to(split: Split) -> Callable[[Photo], bool]:
    """Whether the version of this split was trained or validated on a photo.

    The same bytes under whatever name, or the same name: a copy may have been saved anew. Names
    are without the folder of the split that they may begin with: the train folder alone may have
    been given.
    """

    trained = {*map(_bare, files_of(split, "train", "val"))} - {
        *map(_bare, files_of(split, "test"))
    }
    digests = split.get(DIGESTS, {})
    seen = {*digests.get("train", ()), *digests.get("val", ())}
    return lambda photo: short_digest(photo) in seen or _bare(photo.file) in trained


def _bare(file: str) -> str:
    first, _, rest = file.partition("/")
    return rest if split_of(first) else file

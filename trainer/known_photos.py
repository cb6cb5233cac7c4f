"""Photos that a version has been trained on, as their content or their names say."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from serving.layout import MANIFEST
from trainer.pictures import Photo
from trainer.tree import split_of

SPLIT = "split.json"
# Of a version: its SPLIT, {} without one. Part -> label -> files, and DIGESTS -> part -> digests of
# the same photos; versions of before have none.
Split = Mapping[str, Mapping[str, Sequence[str]]]
DIGESTS = "digests"


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


def count_known(photos: Iterable[Photo], split: Split) -> int:
    """How many the version of this split was trained or validated on.

    The same bytes under whatever name, or the same name: a copy may have been saved anew. Names
    are without the folder of the split that they may begin with: the train folder alone may have
    been given.
    """

    def names(*parts: str) -> set[str]:
        of_parts = (split.get(part, {}) for part in parts)
        return {_bare(file) for labels in of_parts for files in labels.values() for file in files}

    trained = names("train", "val") - names("test")
    digests = split.get(DIGESTS, {})
    seen = {*digests.get("train", ()), *digests.get("val", ())}
    return sum(short_digest(photo) in seen or _bare(photo.file) in trained for photo in photos)


def _bare(file: str) -> str:
    first, _, rest = file.partition("/")
    return rest if split_of(first) else file

"""Photos that a version may have been trained on, as their names say."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from serving.layout import MANIFEST
from trainer.tree import split_of

SPLIT = "split.json"
Split = Mapping[str, Mapping[str, Sequence[str]]]  # of a version: its SPLIT, {} without one


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


def namesakes(files: Iterable[str], split: Split) -> int:
    """How many have the name of one that the version of this split was trained or validated on.

    Without the folder of the split that a name may begin with: the train folder alone may have
    been given.
    """

    def names(*parts: str) -> set[str]:
        of_parts = (split.get(part, {}) for part in parts)
        return {_bare(file) for labels in of_parts for files in labels.values() for file in files}

    trained = names("train", "val") - names("test")
    return sum(_bare(file) in trained for file in files)


def _bare(file: str) -> str:
    first, _, rest = file.partition("/")
    return rest if split_of(first) else file

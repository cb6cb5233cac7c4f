"""The files of a folder of photos, a folder for each class: names only, nothing is opened."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InvalidData

SPLITS = ("train", "val", "test")
_FOLDER_SPLIT = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    path: Path
    file: str  # relative to the folder of photos, POSIX
    label: str
    split: str | None  # None: the folder has no train, val and test folders


def find_files(root: Path) -> list[Found]:
    """Every file in a class folder, sorted; hidden ones are passed over.

    `root` holds train/<class>/ and val/<class>/ or test/<class>/ or both, or else <class>/. Raises
    InvalidData where it has no classes, one class, or splits with different classes.
    """
    if not root.exists():
        raise InvalidData(f"no folder {root}")
    if not root.is_dir():
        raise InvalidData(f"{root} is not a folder; expected {root.parent}/<class>/<photo>")
    folders = _folders(root)
    splits = {_FOLDER_SPLIT[f.name]: f for f in folders if f.name in _FOLDER_SPLIT}
    if "train" not in splits:
        return _classes(root, root, None)
    others = [f.name for f in folders if f not in splits.values()]
    if others:
        raise InvalidData(
            f"{root} has a train folder and beside it {', '.join(others[:5])}; expected only "
            "train, val and test there, or only class folders"
        )
    found = {split: _classes(root, folder, split) for split, folder in splits.items()}
    same_classes(found)
    return [file for split in SPLITS for file in found.get(split, [])]


def labels_of(files: Sequence[Found]) -> tuple[str, ...]:
    """The classes, sorted: the order of the outputs."""
    return tuple(sorted({file.label for file in files}))


def _classes(root: Path, folder: Path, split: str | None) -> list[Found]:
    classes = _folders(folder)
    if len(classes) < 2:
        have = f"one class ({classes[0].name})" if classes else "no class folders"
        raise InvalidData(
            f"{folder} has {have}; expected two or more folders, each named after its class and "
            f"holding its photos: {folder}/<class>/<photo>"
        )
    _distinct(classes)
    files = {label: _files(label) for label in classes}
    empty = [str(label) for label, paths in files.items() if not paths]
    if empty:
        raise InvalidData(f"class folders without any file: {', '.join(empty[:10])}")
    return [
        Found(path=path, file=path.relative_to(root).as_posix(), label=label.name, split=split)
        for label, paths in files.items()
        for path in paths
    ]


def _distinct(classes: Sequence[Path]) -> None:
    """Two folders whose names differ only in case or spaces are one class, misspelt."""
    seen: dict[str, Path] = {}
    for folder in classes:
        name = " ".join(folder.name.replace("_", " ").casefold().split())
        other = seen.setdefault(name, folder)
        if other is not folder:
            raise InvalidData(
                f"the classes {other.name!r} and {folder.name!r} in {folder.parent} differ only in "
                "case or spaces; merge them, or give them names that differ"
            )


def same_classes(found: dict[str, list[Found]]) -> None:
    """Raises InvalidData if a split lacks a class of train, or has another."""
    expected = {file.label for file in found["train"]}
    for split, files in found.items():
        labels = {file.label for file in files}
        if labels != expected:
            raise InvalidData(
                f"the classes of {split} are not those of train: "
                f"missing {_names(expected - labels)}; only in {split} {_names(labels - expected)}"
            )


def _names(labels: set[str]) -> str:
    listed = sorted(labels)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(map(repr, listed[:10])) or "none") + more


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise InvalidData(f"{folder} can't be read: {error.strerror}") from error


def _files(folder: Path) -> list[Path]:
    """All files below, sorted; a folder that can't be read is an error, not an empty one."""

    def refuse(error: OSError) -> None:
        raise InvalidData(f"{error.filename} can't be read: {error.strerror}")

    paths: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(paths)

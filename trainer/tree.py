"""The files of a folder of photos, a folder for each class: names only, nothing is opened."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidRequest, listed, not_utf8, sendable
from serving.folders import walk
from serving.paths import exists, is_dir, is_file
from serving.photo_formats import ENDINGS
from trainer.errors import InvalidData
from trainer.shard_places import Member

SPLITS = ("train", "val", "test")
FOLDER_SPLIT = {
    **dict.fromkeys(("train", "training", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
}
# What systems bring beside folders of people: hidden files of macOS, what was found on a disk,
# Synology's previews of each photo, and what was thrown away.
_OF_SYSTEMS = {
    *("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"),
}
LOOSE = "it lies beside the class folders, in none"


@dataclass(frozen=True, kw_only=True)
class Found:
    path: Path | Member
    file: str  # relative to the folder of photos, POSIX; of a shard, the member's name
    label: str  # empty where there is none, which is a fault
    split: str | None  # None: the folder has no train, val and test folders
    fault: str | None = None  # why it can't be used, where that is known already


def find_files(root: Path) -> list[Found]:
    """Every file in a class folder, sorted, and photos that lie beside these, which is a fault;
    hidden ones are passed over.

    `root` holds train/<class>/ and val/<class>/ or test/<class>/ or both, or else <class>/. Raises
    InvalidData where it has no classes, one class, or splits with different classes.
    """
    if not exists(root):
        raise InvalidData(f"no folder {root}")
    if not is_dir(root):
        raise InvalidData(f"{root} is not a folder; expected {root.parent}/<class>/<photo>")
    folders = _folders(root)
    splits = {split: f for f in folders if (split := split_of(f.name))}
    if "train" not in splits:
        if splits and len(splits) == len(folders):
            raise InvalidData(
                f"{root} has {', '.join(f.name for f in folders)} and no train folder; expected "
                "train beside them, or only class folders"
            )
        return _classes(root, root, None)
    others = [f.name for f in folders if f not in splits.values()]
    if others and "train" not in (f.name.lower() for f in folders):
        return _classes(root, root, None)  # "training" may be a class
    if others and splits.keys() == {"train"} and not any(map(is_dir, splits["train"].iterdir())):
        return _classes(root, root, None)  # and a train, beside a bus and a car
    if others:
        raise InvalidData(
            f"{root} has a train folder and beside it {listed(others, 5)}; expected only "
            "train, val and test there, each once, or only class folders"
        )
    found = {split: _classes(root, folder, split) for split, folder in splits.items()}
    same_classes(found)
    return [file for split in SPLITS for file in found.get(split, [])] + _loose(root, root, None)


def require_apart(flag: str, place: str, data: str) -> None:
    """Raises InvalidRequest if `place`, where the flag has something written, lies in the folder
    `data`, of photos or of shards, as a class would."""
    if "://" in place or not Path(data).is_dir():
        return
    inside, photos = Path(place).resolve(), Path(data).resolve()
    if not inside.is_relative_to(photos):
        return
    if not any(part.startswith(".") for part in inside.relative_to(photos).parts):
        raise InvalidRequest(
            f"{flag} {place} lies in {data}, where each folder is a class; give another folder, "
            "beside that of the photos"
        )


def split_of(folder: str) -> str | None:
    """The split that a folder, or a row of a table, of that name is of; None: no split's name."""
    return FOLDER_SPLIT.get(folder.lower())


def hidden(folder: str) -> bool:
    """Or of a system: no class, and nothing that anybody sorted."""
    return folder.startswith(".") or folder in _OF_SYSTEMS


def labels_of(files: Sequence[Found]) -> tuple[str, ...]:
    """The classes, sorted: the order of the outputs."""
    return tuple(sorted({file.label for file in files} - {""}))


def same_below(files: Iterable[Found]) -> list[str]:
    """The folders, two or more, that all class folders hold alike, with no photo beside them: these
    may be what was meant, and the others years, or the classes of which these are splits."""
    below: dict[str, set[str]] = {}
    for file in files:
        label, *folders = file.file.split("/")[:-1] or [""]
        if file.fault is None and file.split is None and label.strip() == file.label:
            below.setdefault(label, set()).add(folders[0] if folders else "")
    first, *others = below.values() or [set()]
    same = len(first) > 1 and "" not in first and all(other == first for other in others)
    return sorted(first) if same else []


def _classes(root: Path, folder: Path, split: str | None) -> list[Found]:
    classes = _folders(folder)
    if len(classes) < 2:
        have = f"one class ({classes[0].name})" if classes else "no class folders"
        raise InvalidData(
            f"{folder} has {have}; expected two or more folders, each named after its class and "
            f"holding its photos: {folder}/<class>/<photo>"
        )
    distinct_labels([label.name for label in classes], str(folder))
    files = {label: _files(label) for label in classes}
    empty = [str(label) for label, paths in files.items() if not paths]
    if empty:
        raise InvalidData(f"class folders without any file: {listed(empty)}")
    return [
        Found(path=path, file=path.relative_to(root).as_posix(), label=name, split=split)
        for name, paths in ((label.name.strip(), paths) for label, paths in files.items())
        for path in paths
    ] + _loose(root, folder, split)


def _loose(root: Path, folder: Path, split: str | None) -> list[Found]:
    """The photos that lie in `folder` itself: whatever else does, nobody meant to train on."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    return [
        Found(path=path, file=_shown(path.relative_to(root)), label="", split=split, fault=LOOSE)
        for path in photos
        if not hidden(path.name) and is_file(path)
    ]


def _shown(path: Path) -> str:
    return sendable(path.as_posix())


def one_line(label: str) -> bool:
    """Of a break or a control character a terminal, a log and a table make something else; half a
    character can't be written at all. What joins letters or emoji can't be seen either, and belongs
    to them."""
    no_text = ("Cc", "Cs", "Zl", "Zp")
    return bool(label.strip()) and not any(unicodedata.category(c) in no_text for c in label)


def distinct_labels(labels: Iterable[str], where: str) -> None:
    """Two labels that differ only in case, spaces, how accents are encoded (as macOS and Linux
    may) or how a number is written are one, misspelt. Raises InvalidData, also for one that is no
    line of text."""
    seen: dict[str, str] = {}
    for label in labels:
        if any(unicodedata.category(c) == "Cs" for c in label):
            raise InvalidData(f"{not_utf8(f'the class {label!r} in {where}', 'rename it')}")
        if not one_line(label):
            raise InvalidData(f"the class {label!r} in {where} is not one line of text; rename it")
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold())
        name = " ".join(folded.replace("_", " ").split())
        if number := re.fullmatch(r"0*(\d+)(\.0*)?", name):
            name = number[1]
        other = seen.setdefault(name, label)
        if other != label:
            raise InvalidData(
                f"the classes {other!r} and {label!r} in {where} differ only in case, spaces, "
                "the encoding of accents or how a number is written; merge them, or give them "
                "names that differ"
            )


def same_classes(found: dict[str, list[Found]]) -> None:
    """Raises InvalidData if a split lacks a class of train, or has another."""
    expected = set(labels_of(found["train"]))
    for split, files in found.items():
        labels = set(labels_of(files))
        distinct_labels(sorted(expected | labels), f"train and {split}")
        if labels != expected:
            raise InvalidData(
                f"the classes of {split} are not those of train: "
                f"missing {_names(expected - labels)}; only in {split} {_names(labels - expected)}"
            )


def _names(labels: set[str]) -> str:
    return listed([repr(label) for label in sorted(labels)])


def _folders(folder: Path) -> list[Path]:
    try:
        shown = sorted(path for path in folder.iterdir() if not hidden(path.name))
        lost = [path for path in shown if path.is_symlink() and not exists(path)]
        found = [path for path in shown if is_dir(path)]
    except OSError as error:
        raise InvalidData(f"{folder} can't be read: {error.strerror}") from error
    if lost:  # a class on a disk that is not there
        raise InvalidData(f"{lost[0]} is a link that leads nowhere; mend it, or remove it")
    return found


def _files(folder: Path) -> list[Path]:
    """All files below, sorted; a folder that can't be read is an error, not an empty one."""

    def refuse(error: OSError) -> None:
        raise InvalidData(f"{error.filename} can't be read: {error.strerror}")

    def upwards(link: Path) -> None:
        raise InvalidData(f"{link} leads back to a folder that it is a part of")

    paths = sorted(
        path
        for path in walk(folder, refuse, upwards)
        if not any(map(hidden, path.relative_to(folder).parts[:-1]))
    )
    for path in paths:
        try:
            str(path.relative_to(folder.parent)).encode()
        except UnicodeEncodeError as error:
            raise InvalidData(
                not_utf8(
                    f"the name {os.fsencode(path)!r}, to be written down with the version,",
                    "rename it",
                )
            ) from error
    return paths

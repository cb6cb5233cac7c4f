"""From files to labelled splits of photos: the data set of one training run."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from serving.modelspec import Dataset, Preprocessing
from trainer.config import TrainConfig
from trainer.errors import InvalidData
from trainer.near_duplicates import NearDuplicate, near_duplicates
from trainer.pictures import Photo, Pictures, as_served
from trainer.screening import LeftOut, Usable, drop_duplicates, screen
from trainer.split import Ints, hold_out
from trainer.tree import SPLITS, Found, labels_of

T = TypeVar("T")

_COMPARED_AT_ONCE = 1024  # photos of a split with all of another, which are cut each time


class Progress(Protocol):
    """Passes the items on, and shows how many of all have come."""

    def __call__(self, items: Iterable[T], title: str, total: int, /) -> Iterable[T]: ...


@dataclass(frozen=True, kw_only=True)
class PhotoData:
    labels: tuple[str, ...]  # sorted; a photo's label is an index into it
    splits: dict[str, tuple[Photo, ...]]  # train, val, test
    left_out: tuple[LeftOut, ...]
    alike: tuple[NearDuplicate, ...]  # across splits
    squares: Pictures  # as the server would see them

    def targets(self, split: str) -> Ints:
        """int64 [n]."""
        return np.array([photo.label for photo in self.splits[split]], dtype=np.int64)

    def describe(self) -> Dataset:
        counts = {}
        for split in SPLITS:
            found = Counter(photo.label for photo in self.splits[split])
            counts[split] = {label: found[i] for i, label in enumerate(self.labels)}
        digest = hashlib.sha256()
        for split in SPLITS:
            for photo in self.splits[split]:
                entry = (split, self.labels[photo.label], photo.file, photo.digest)
                digest.update(json.dumps(entry).encode() + b"\n")
        return Dataset(digest=digest.hexdigest(), counts=counts)

    def split_json(self) -> str:
        """split -> label -> files, relative to the folder of photos."""
        files = {
            split: {
                label: [photo.file for photo in self.splits[split] if photo.label == i]
                for i, label in enumerate(self.labels)
            }
            for split in SPLITS
        }
        return json.dumps(files, indent=1, ensure_ascii=False) + "\n"


def load_data(
    config: TrainConfig, files: Sequence[Found], spec: Preprocessing, progress: Progress
) -> PhotoData:
    """Open and split `files`.

    Raises InvalidData where there is too little to train on, or with `config.strict` where any file
    has to be left out.
    """
    squares = as_served(spec, workers=config.workers)
    usable: list[Usable] = []
    left_out: list[LeftOut] = []
    results = screen(files, squares, config.workers)
    for result in progress(results, "Opening photos", len(files)):
        if isinstance(result, Usable):
            usable.append(result)
        else:
            left_out.append(result)
    kept, duplicates = drop_duplicates(usable)
    left_out = sorted([*left_out, *duplicates], key=lambda item: item.file)
    if config.strict and left_out:
        named = "; ".join(f"{item.file} ({item.reason})" for item in left_out[:5])
        more = f"; and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        raise InvalidData(f"{len(left_out)} files can't be used (--strict): {named}{more}")
    if not kept:
        raise InvalidData(f"{config.data} has no photo that can be used{_reasons(left_out)}")
    labels = labels_of(files)
    photos = {split: _photos(kept, labels, split) for split in (None, *SPLITS)}
    splits = _split(photos, labels, config, left_out, {file.split for file in files})
    thumbnails = {item.digest: item.thumbnail for item in kept}
    parts = [
        (splits[one][i : i + _COMPARED_AT_ONCE], splits[other])
        for one, other in (("test", "train"), ("test", "val"), ("val", "train"))
        for i in range(0, len(splits[one]), _COMPARED_AT_ONCE)
    ]
    compared = (near_duplicates(ones, others, thumbnails) for ones, others in parts)
    alike = [p for pairs in progress(compared, "Comparing splits", len(parts)) for p in pairs]
    return PhotoData(
        labels=labels,
        splits=splits,
        left_out=tuple(left_out),
        alike=tuple(alike),
        squares=squares,
    )


def _photos(kept: list[Usable], labels: tuple[str, ...], split: str | None) -> list[Photo]:
    return [
        Photo(
            path=item.found.path,
            file=item.found.file,
            label=labels.index(item.found.label),
            digest=item.digest,
        )
        for item in kept
        if item.found.split == split
    ]


def _split(
    photos: dict[str | None, list[Photo]],
    labels: tuple[str, ...],
    config: TrainConfig,
    left_out: list[LeftOut],
    found: set[str | None],
) -> dict[str, tuple[Photo, ...]]:
    """Given splits as they are; what is missing is held out from train, test first."""
    train = photos[None] or photos["train"]
    given: dict[str, list[Photo]] = {s: photos[s] for s in ("val", "test") if s in found}
    missing: list[str] = [split for split in ("test", "val") if split not in given]
    _require("train", train, labels, 1 + len(missing), missing, left_out)
    for split, members in given.items():
        _require(split, members, labels, 1, [], left_out)
    generator = np.random.default_rng(config.seed)
    shares = {"test": config.test_fraction, "val": config.val_fraction}
    remaining = 1.0
    for taken, split in enumerate(missing):
        targets = np.array([photo.label for photo in train])
        share, leave = shares[split] / remaining, len(missing) - taken
        held = set(hold_out(targets, share, generator, leave).tolist())
        given[split] = [photo for i, photo in enumerate(train) if i in held]
        train = [photo for i, photo in enumerate(train) if i not in held]
        remaining -= shares[split]
    return {"train": tuple(train), "val": tuple(given["val"]), "test": tuple(given["test"])}


def _require(
    split: str,
    photos: list[Photo],
    labels: tuple[str, ...],
    least: int,
    held_out: list[str],
    left_out: list[LeftOut],
) -> None:
    counts = Counter(photo.label for photo in photos)
    few = [f"{label} has {counts[i]}" for i, label in enumerate(labels) if counts[i] < least]
    if few:
        why = f" ({' and '.join(held_out)} are taken from it)" if held_out else ""
        raise InvalidData(
            f"too few photos that can be used: every class needs at least {least} in {split}{why}; "
            f"{', '.join(few[:10])}{_reasons(left_out)}"
        )


def _reasons(left_out: list[LeftOut]) -> str:
    if not left_out:
        return ""
    return f" ({len(left_out)} left out, such as {left_out[0].file}: {left_out[0].reason})"

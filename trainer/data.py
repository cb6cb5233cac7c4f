"""From files to labelled splits of photos: the data set of one training run."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.errors import listed
from serving.modelspec import Dataset, Preprocessing
from trainer.config import TrainConfig
from trainer.console import Progress
from trainer.errors import InvalidData
from trainer.known_photos import DIGESTS, NO_SPLIT, Split, part_in, short_digest
from trainer.near_duplicates import Thumbnail, groups_alike, thumbnail
from trainer.pictures import Photo, Pictures, as_served
from trainer.screening import LeftOut, Usable, drop_duplicates, screen
from trainer.split import LEARNT, Ints, hold_out, units_of
from trainer.tree import SPLITS, Found, labels_of

# Photos that look like one of another class, and their part of all, above which it is no wrong
# labels: digits, or parts with small defects, are told apart by more than likeness goes by.
_SHARED, _SHARED_PART = 20, 0.1


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """Two photos of different splits or labels that show the same picture."""

    one: Photo
    other: Photo


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """A photo whose label is probably wrong."""

    photo: Photo
    split: str
    looks_like: int  # a label
    probability: float  # that it is wrong
    dropped: bool  # from its split, which is never test


@dataclass(frozen=True, kw_only=True)
class PhotoData:
    labels: tuple[str, ...]  # sorted; a photo's label is an index into it
    splits: dict[str, tuple[Photo, ...]]  # train, val, test
    left_out: tuple[LeftOut, ...]
    groups: dict[str, int]  # digest -> of the photos that show the same picture
    indistinct: bool  # photos of different classes look alike so often that this tells nothing
    together: int  # photos that are in one split with another that looks like them, by our choice
    alike: tuple[NearDuplicate, ...]  # across splits
    at_odds: tuple[NearDuplicate, ...]  # under two labels
    squares: Pictures  # as the server would see them
    label_errors: tuple[LabelError, ...] = ()  # the surest first; none until they are looked for

    @property
    def learnt_from(self) -> tuple[Photo, ...]:
        """Train and val: what is published may have seen them."""
        return self.splits["train"] + self.splits["val"]

    def targets(self, split: str) -> Ints:
        """int64 [n]."""
        return targets_of(self.splits[split])

    def units(self, photos: Sequence[Photo]) -> Ints:
        """int64 [n]: the same number for those that are to be in one fold.

        Two parts are enough for that. What a split has kept together stays so, though it is a
        larger share of the photos without those in test.
        """
        return units_by(photos, self.groups, 2)

    def describe(self) -> Dataset:
        """Photos of each label in each split; and a digest that other photos, contents, labels or
        splits change."""
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
        """split -> label -> files, relative to the folder of photos; and the photos' digests."""
        files: dict[str, dict[str, list[str]]] = {
            split: {label: [] for label in self.labels} for split in SPLITS
        }
        for split in SPLITS:
            for photo in self.splits[split]:
                files[split][self.labels[photo.label]].append(photo.file)
        files[DIGESTS] = {split: [short_digest(p) for p in self.splits[split]] for split in SPLITS}
        return json.dumps(files, indent=1, ensure_ascii=False) + "\n"


def targets_of(photos: Sequence[Photo]) -> Ints:
    """int64 [n]."""
    return np.array([photo.label for photo in photos], dtype=np.int64)


def load_data(
    config: TrainConfig,
    files: Sequence[Found],
    spec: Preprocessing,
    progress: Progress,
    earlier: Split = NO_SPLIT,
) -> PhotoData:
    """Open and split `files`; where that is for us to do, what was in the `earlier` split stays.

    Raises InvalidData where there is too little to train on, or with `config.strict` where any file
    has to be left out.
    """
    squares = as_served(spec, workers=config.workers)
    thumbnails: dict[str, Thumbnail] = {}  # by digest

    def decode(data: bytes, digest: str) -> None:
        squares.decode(data, digest)
        thumbnails[digest] = thumbnail(data)

    usable: list[Usable] = []
    left_out: list[LeftOut] = []
    results = screen(files, decode, config.workers)
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
    number = {label: i for i, label in enumerate(labels)}
    photos: dict[str | None, list[Photo]] = {split: [] for split in (None, *SPLITS)}
    for item in kept:
        photos[item.found.split].append(item.photo(number[item.found.label]))
    groups, indistinct = groups_of(kept, thumbnails, progress, config.workers)
    given = {file.split for file in files}
    splits, together = _split(photos, labels, config, left_out, given, groups, earlier)
    return PhotoData(
        labels=labels,
        splits=splits,
        left_out=tuple(left_out),
        groups=groups,
        indistinct=indistinct,
        together=together,
        alike=tuple(_across(splits, groups)),
        at_odds=tuple(_at_odds(splits, groups)),
        squares=squares,
    )


def groups_of(
    kept: Sequence[Usable],
    thumbnails: Mapping[str, Thumbnail],
    progress: Progress,
    workers: int,
) -> tuple[dict[str, int], bool]:
    """By digest, as of `groups_alike`; and whether likeness tells nothing here: then each photo is
    one by itself."""
    pictures = np.stack([thumbnails[item.digest] for item in kept])
    found = groups_alike(pictures, progress, workers).tolist()
    classes: dict[int, Counter[str]] = {}
    for item, group in zip(kept, found, strict=True):
        classes.setdefault(group, Counter())[item.found.label] += 1
    # Beside each photo that is of another class than most: a burst with one wrong label is a burst.
    shared = sum(min(c.total(), 2 * (c.total() - max(c.values()))) for c in classes.values())
    indistinct = shared > max(_SHARED, _SHARED_PART * len(kept))
    groups = range(len(kept)) if indistinct else found
    return {item.digest: group for item, group in zip(kept, groups, strict=True)}, indistinct


def _across(
    splits: dict[str, tuple[Photo, ...]], groups: dict[str, int]
) -> Iterator[NearDuplicate]:
    """Each test photo that looks like one of train or val, and each of val that looks like one of
    train, with the first of those."""
    for one, others in (("test", ("train", "val")), ("val", ("train",))):
        first: dict[int, Photo] = {}
        for photo in itertools.chain(*(splits[other] for other in others)):
            first.setdefault(groups[photo.digest], photo)
        for photo in splits[one]:
            if (like := first.get(groups[photo.digest])) is not None:
                yield NearDuplicate(one=photo, other=like)


def _at_odds(
    splits: dict[str, tuple[Photo, ...]], groups: dict[str, int]
) -> Iterator[NearDuplicate]:
    """Each photo that is of another class than most of its picture, with the first of these."""
    photos = [*itertools.chain(*splits.values())]
    classes: dict[int, Counter[int]] = {}
    for photo in photos:
        classes.setdefault(groups[photo.digest], Counter())[photo.label] += 1
    most = {group: max(counts, key=counts.__getitem__) for group, counts in classes.items()}
    first: dict[int, Photo] = {}
    for photo in photos:
        if photo.label == most[groups[photo.digest]]:
            first.setdefault(groups[photo.digest], photo)
    for photo in photos:
        if photo.label != most[groups[photo.digest]]:
            yield NearDuplicate(one=photo, other=first[groups[photo.digest]])


def units_by(photos: Sequence[Photo], groups: Mapping[str, int], parts: int) -> Ints:
    """As `units_of`; groups: by digest."""
    return units_of(
        targets_of(photos), np.array([groups[photo.digest] for photo in photos], np.int64), parts
    )


def _split(
    photos: dict[str | None, list[Photo]],
    labels: tuple[str, ...],
    config: TrainConfig,
    left_out: list[LeftOut],
    found: set[str | None],
    groups: dict[str, int],
    earlier: Split,
) -> tuple[dict[str, tuple[Photo, ...]], int]:
    """Given splits as they are; what is missing is held out from train, test first, and what looks
    alike stays together: that many photos."""
    train = photos[None] or photos["train"]
    given: dict[str, list[Photo]] = {s: photos[s] for s in ("val", "test") if s in found}
    missing: list[str] = [split for split in ("test", "val") if split not in given]
    _require("train", train, labels, 1 + len(missing), missing, left_out)
    for split, members in given.items():
        _require(split, members, labels, 1, [], left_out)
    generator = np.random.default_rng(config.seed)
    shares = {"test": config.test_fraction, "val": config.val_fraction}
    remaining = 1.0
    units = units_by(train, groups, len(SPLITS))
    together = int(np.sum(np.bincount(units)[units] > 1)) if missing else 0
    for taken, split in enumerate(missing):
        targets = np.array([photo.label for photo in train])
        share, leave = shares[split] / remaining, len(missing) - taken
        last = _last(train, units, split, earlier)
        held = hold_out(targets, share, generator, leave, units, last)
        given[split] = [train[i] for i in held]
        kept = np.setdiff1d(np.arange(len(train)), held)
        train, units = [train[i] for i in kept], units[kept]
        remaining -= shares[split]
    splits = {"train": tuple(train), "val": tuple(given["val"]), "test": tuple(given["test"])}
    return splits, together


def _last(photos: Sequence[Photo], units: Ints, split: str, earlier: Split) -> Ints:
    """As `hold_out` has it: first units that were in this split, last those learnt from."""
    part_of = part_in(earlier)

    def of(photo: Photo) -> int:
        part = part_of(photo)
        return 0 if part == split else LEARNT if part in ("train", "val") else 1

    own = np.array([of(photo) for photo in photos])
    first, last = (np.full(units.max() + 1, start) for start in (LEARNT, 0))
    np.minimum.at(first, units, own)
    np.maximum.at(last, units, own)
    return np.where(last == LEARNT, last, first)[units]


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
            f"{listed(few)}{_reasons(left_out)}"
        )


def _reasons(left_out: list[LeftOut]) -> str:
    if not left_out:
        return ""
    return f" ({len(left_out)} left out, such as {left_out[0].file}: {left_out[0].reason})"

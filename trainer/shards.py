"""Photos in WebDataset shards, for data too big for a folder: tar files, each photo with its label.

Every shard is read once from end to end for its index (trainer.shard_index), which is kept. After
that photos are read from wherever they are, in any order, as from a folder: so duplicates are found
over all shards, splits are exact and even, each process takes its share, no photo counts twice, and
a training that was stopped goes on to the same end. The webdataset package streams shards through a
buffer instead: it needs no index, but shuffles within the buffer alone, splits by whole shards, and
pads or drops photos where processes share them. Our shards can be read with it, and its with ours.

Of a shard in a bucket the reading leaves a copy (trainer.shard_cache) where there is room; photos
of the others are asked for one by one. So the shards need fit neither in memory nor on the disk.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from serving.paths import is_dir
from trainer.console import Progress, unshown
from trainer.errors import InvalidData
from trainer.shard_cache import ShardCache, shard_cache
from trainer.shard_index import Sample, samples_of, split_name
from trainer.shard_places import BucketShard, Member, Shard, find_shards, shards_of_folder
from trainer.tree import SPLITS, Found, distinct_labels, hidden, labels_of, same_classes, split_of

Read = tuple[Shard, list[Sample]]

# One name a line, beside the shards or a folder above; labels that are numbers are indices into it.
CLASS_NAMES = "classnames.txt"

_ENDS = (".tar", ".tar.gz", ".tgz")
_AT_ONCE = 4  # shards that are read; a store gives one reader less than a machine can take


def is_shards(data: str) -> bool:
    """Whether `data` names shards: a bucket, tar files, or a folder with nothing but such."""
    if "://" in data or data.endswith(_ENDS):
        return True
    folder = Path(data)
    if not any(folder.glob("*.tar")):
        return False
    return not any(is_dir(each) and not hidden(each.name) for each in folder.iterdir())


def find_shard_photos(data: str, progress: Progress = unshown) -> list[Found]:
    """The photos of the shards that `data` stands for, in the order in which a folder has them.

    `data`: see `is_shards`; with {000..012}, {train,val}, * and ? in it. Shards whose names begin
    with train, val or test, or whose folders are called so, are of that split. Raises InvalidData,
    InvalidRequest, Unavailable.
    """
    pattern = data if data.endswith(_ENDS) else f"{data.rstrip('/')}/*.tar"
    shards = shards_of_folder(Path(data)) if os.path.isdir(data) else find_shards(pattern)
    cache = shard_cache(os.environ)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            reading = pool.map(lambda shard: _read(shard, cache), shards)
            read = list(progress(reading, "Reading shards", len(shards)))
        finally:
            pool.shutdown(cancel_futures=True)
    splits = _splits(shards)
    by_split = _counted_by_split(read, splits)
    names = _class_names(shards)
    found = [
        Found(
            path=Member(shard=shard, offset=sample.offset, size=sample.size),
            file=f"{splits[shard.location]}/{sample.file}" if by_split else sample.file,
            label=_label(sample, shard, names[shard.location]),
            split=splits[shard.location],
            fault=sample.fault,
        )
        for shard, samples in read
        for sample in samples
    ]
    labels = labels_of(found)
    if len(labels) < 2:
        have = f"one label ({labels[0]})" if labels else "no photo with a label"
        fault = next((f" ({each.file}: {each.fault})" for each in found if each.fault), "")
        raise InvalidData(f"{pattern} has {have}{fault}; expected two labels or more")
    distinct_labels(labels, pattern)
    if any(splits.values()):
        given = [split for split in SPLITS if split in splits.values()]
        same_classes({split: [each for each in found if each.split == split] for split in given})
    return sorted(
        found,
        key=lambda each: (
            SPLITS.index(each.split) if each.split else 0,
            PurePosixPath(each.file).parts,
        ),
    )


def shards_name(data: str) -> str:
    """What a model is called after: the shards without their numbers, or else their folder."""
    place = PurePosixPath(data.partition("://")[2] if "://" in data else Path(data).absolute())
    for part in reversed(place.parts):
        stem = re.sub(r"([-_.]\d+)?(\.tar|\.tar\.gz|\.tgz)?$", "", re.split(r"[{*?\[]", part)[0])
        stem = stem.strip("-._/")
        if stem and not split_of(stem):
            return stem
    return ""


def _read(shard: Shard, cache: ShardCache) -> Read:
    if isinstance(shard, BucketShard):
        shard = dataclasses.replace(shard, copy=cache.copy(shard))
    return shard, samples_of(shard, cache)


def _counted_by_split(read: Sequence[Read], splits: Mapping[str, str | None]) -> bool:
    """Whether two splits have a key in common, as where samples of each are counted from 0.

    Splits and reports name photos by their keys. Raises InvalidData if shards of one split have one
    in common.
    """
    seen: dict[tuple[str | None, str], Shard] = {}
    keys = set()
    for shard, samples in read:
        split = splits[shard.location]
        for sample in samples:
            name = split_name(sample.file)
            assert name is not None  # or it were no sample
            keys.add(name[0])
            other = seen.setdefault((split, name[0]), shard)
            if other is not shard:
                raise InvalidData(
                    f"the key {name[0]} is in {other.location} and in {shard.location}; keys must "
                    "differ over all shards of a split"
                )
    return len(keys) < len(seen)


def _splits(shards: Sequence[Shard]) -> dict[str, str | None]:
    """Location -> split; None for all where none is of train: then they are one set of photos."""
    splits = {shard.location: _split(shard) for shard in shards}
    if "train" not in splits.values():
        return dict.fromkeys(splits)
    for location, split in splits.items():
        if split is None:
            raise InvalidData(
                f"some shards are of train by their names, and {location} is of no split; expected "
                "train, val or test at the beginning of each name, or of none"
            )
    return splits


def _split(shard: Shard) -> str | None:
    place = PurePosixPath(shard.location)
    word = re.match(r"[A-Za-z]*", place.name)
    assert word is not None
    return split_of(word[0]) or split_of(place.parent.name)


def _class_names(shards: Sequence[Shard]) -> dict[str, list[str]]:
    """Location -> names; none where there is no such file. Empty for one that stands there twice,
    as ImageNet's crane, which would make two classes one."""
    by_folder: dict[str, list[str]] = {}
    for shard in shards:
        folder = shard.location.rpartition("/")[0]
        if folder not in by_folder:
            content = shard.beside(CLASS_NAMES)
            text = (content or b"").decode("utf-8-sig", errors="surrogateescape")
            lines = [line.strip() for line in text.rstrip().splitlines()]
            often = Counter(lines)
            by_folder[folder] = [line if often[line] == 1 else "" for line in lines]
    return {shard.location: by_folder[shard.location.rpartition("/")[0]] for shard in shards}


def _label(sample: Sample, shard: Shard, names: Sequence[str]) -> str:
    if not names or not re.fullmatch(r"\d+", sample.label):
        return sample.label
    if int(sample.label) >= len(names):
        raise InvalidData(
            f"{sample.file} in {shard.location} has the label {sample.label}, and {CLASS_NAMES} "
            f"only the {len(names)} from 0 to {len(names) - 1}"
        )
    name = names[int(sample.label)]
    if not name:
        raise InvalidData(
            f"{sample.file} in {shard.location} has the label {sample.label}, and line "
            f"{int(sample.label) + 1} of {CLASS_NAMES} is empty, or the same as another one; give "
            "it a name of its own"
        )
    return name

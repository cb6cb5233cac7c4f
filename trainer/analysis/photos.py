"""The photos that a version is judged on: never those that it was trained on."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.modelspec import Manifest
from serving.repository import Repository
from trainer.console import unshown
from trainer.data import groups_of, units_by
from trainer.errors import InvalidData
from trainer.known_photos import Split, count_known, files_of, known_to, split_in
from trainer.listing import find_photos
from trainer.near_duplicates import Thumbnail, thumbnail
from trainer.pictures import Photo, as_served
from trainer.screening import LeftOut, Usable, drop_duplicates, screen
from trainer.tree import SPLITS, Found

Draw = Callable[[Sequence[Found], int | None, int], list[Found]]  # files, limit, seed


@dataclass(frozen=True, kw_only=True)
class Photos:
    folder: str
    files: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]  # [n, S, S, 3], as served
    labels: npt.NDArray[np.int64]  # [n]
    digest: str  # sha256 over name, label and content of each
    left_out: tuple[LeftOut, ...]
    alike: int  # photos that are not here, as they show the same picture as one that is
    known: int  # photos that the version was trained on, as their content or names say


def load_photos(
    data: str,
    repository: Repository,
    manifest: Manifest,
    *,
    limit: int | None,
    seed: int,
    workers: int,
    datasets: Path | None = None,
    draw: Draw | None = None,
    once: bool = False,
    of_all: Sequence[Manifest] = (),
) -> Photos:
    """The test photos of `data`, at most `limit`, which `draw` chooses by `seed`: by default spread
    over the classes.

    `data`: as `find_photos` takes it. Where it has a split named test, that alone; of what the
    version was trained on, only the photos that its split kept for the test. once: of copies and
    bursts, as a training finds them, the first alone. of_all: versions, this one among them, of
    which none may have been trained on them; all those get the same. Raises InvalidData.
    """
    found = [file for file in find_photos(data, datasets) if file.label]
    _same_labels(found, manifest, data)
    split = split_in(repository, manifest)
    splits = [split_in(repository, each) for each in of_all]
    tests = _unknown_to_all(found, splits) if splits else _tests_of(found, split)
    chosen = (draw or by_turns)(tests, limit, seed)
    squares = as_served(manifest.preprocessing, workers=workers)
    thumbnails: dict[str, Thumbnail] = {}

    def decode(data: bytes, digest: str) -> None:
        squares.decode(data, digest)
        if once:
            thumbnails[digest] = thumbnail(data)

    results = list(screen(chosen, decode, workers))
    usable = [result for result in results if isinstance(result, Usable)]
    kept, duplicates = drop_duplicates(usable)
    left_out = [result for result in results if isinstance(result, LeftOut)] + duplicates
    if tests and not kept:
        reason = f"; {left_out[0].file}: {left_out[0].reason}" if left_out else ""
        raise InvalidData(f"{data} has no photo that can be used{reason}")
    photos = [item.photo(manifest.labels.index(item.found.label)) for item in kept]
    known = [known_to(each) for each in splits]
    photos = [photo for photo in photos if not any(to(photo) for to in known)]
    if not photos:
        raise InvalidData(
            f"{data} has no photo of which neither content nor name says that one of the versions "
            "was trained on it; give a folder of others"
        )
    new = len(photos)
    if once:
        photos = _one_of_each(photos, kept, thumbnails, workers)
    digest = hashlib.sha256()
    for photo in photos:
        entry = (manifest.labels[photo.label], photo.file, photo.digest)
        digest.update(json.dumps(entry).encode() + b"\n")
    return Photos(
        folder=data,
        files=tuple(photo.file for photo in photos),
        pixels=np.stack(squares.get(photos)),
        labels=np.array([photo.label for photo in photos], np.int64),
        digest=digest.hexdigest(),
        left_out=tuple(left_out),
        alike=new - len(photos),
        known=count_known(photos, split),
    )


def _one_of_each(
    photos: Sequence[Photo],
    kept: Sequence[Usable],
    thumbnails: Mapping[str, Thumbnail],
    workers: int,
) -> list[Photo]:
    """The first of each unit that a training would not have parted."""
    groups, _ = groups_of(kept, thumbnails, unshown, workers)
    _, first = np.unique(units_by(photos, groups, len(SPLITS)), return_index=True)
    return [photos[i] for i in np.sort(first)]


def _tests_of(found: list[Found], split: Split) -> list[Found]:
    if tested := _named_test(found):
        return tested
    trained = files_of(split, "train", "val")
    if not any(file.file in trained for file in found):
        return found
    tests = files_of(split, "test")
    return [file for file in found if file.file in tests]


def _unknown_to_all(found: list[Found], splits: Sequence[Split]) -> list[Found]:
    """By name: of photos that are new since, none tells of a version's test."""
    trained = set().union(*(files_of(split, "train", "val") for split in splits))
    return _named_test(found) or [file for file in found if file.file not in trained]


def _named_test(found: Sequence[Found]) -> list[Found]:
    return [file for file in found if file.split == "test"]


def _same_labels(found: Sequence[Found], manifest: Manifest, data: str) -> None:
    here, there = {file.label for file in found}, set(manifest.labels)
    if here - there:
        raise InvalidData(
            f"{data} has classes that {manifest.name}/{manifest.version} does not know: "
            f"{', '.join(sorted(here - there))}; it knows {', '.join(manifest.labels)}"
        )
    if there - here:
        raise InvalidData(
            f"{data} lacks classes of {manifest.name}/{manifest.version}: "
            f"{', '.join(sorted(there - here))}"
        )


def at_random(found: Sequence[Found], limit: int | None, seed: int) -> list[Found]:
    """Each as likely as any other, so that classes keep their shares."""
    drawn = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[i] for i in np.sort(drawn)]


def by_turns(found: Sequence[Found], limit: int | None, seed: int) -> list[Found]:
    """Classes take turns, each in an order drawn by `seed`, until there are `limit`."""
    if limit is None or limit >= len(found):
        return list(found)
    generator = np.random.default_rng(seed)
    by_class: dict[str, list[Found]] = defaultdict(list)
    for file in found:
        by_class[file.label].append(file)
    lines = [
        deque(files[i] for i in generator.permutation(len(files))) for files in by_class.values()
    ]
    generator.shuffle(lines)
    chosen: list[Found] = []
    while len(chosen) < limit:
        for line in lines:
            if line and len(chosen) < limit:
                chosen.append(line.popleft())
    return sorted(chosen, key=lambda file: file.file)

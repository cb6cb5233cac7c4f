"""Public data sets by name, with their official splits, read and fetched by torchvision's loaders,
and by one like them."""

import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from PIL import Image

from serving.errors import Unavailable, first_line
from trainer.alone import alone
from trainer.errors import InvalidData
from trainer.tree import SPLITS, Found

Entry = tuple[Path, int]  # a photo and the index of its class
Loader = Callable[..., Any]
_Splits = Mapping[str | None, Mapping[str, Any]]

_FETCH_FAILED = (OSError, RuntimeError, HTTPException)  # URLError is an OSError


@dataclass(frozen=True, kw_only=True)
class Named:
    """A loader like torchvision's, where it has the set, how it is asked for each of our splits,
    what it then holds."""

    loader: Loader
    folder: str  # below the root
    splits: _Splits  # None: it has no splits of its own
    entries: Callable[[Any, Path], list[Entry]] = lambda loaded, _: [
        (Path(path), label) for path, label in (loaded[i] for i in range(len(loaded)))
    ]


def _of(module: str, name: str) -> Loader:
    """Imported when it is called, as torchvision takes seconds, and a folder needs none of it."""
    return lambda root, **how: getattr(importlib.import_module(module), name)(root, **how)


_torchvision = partial(_of, "torchvision.datasets")


def _paths(loader: Loader) -> Loader:
    """The loader, giving a photo's path where it would open it."""
    return lambda root, **how: loader(root, loader=str, **how)


def _pets(loaded: Any, _: Path) -> list[Entry]:
    return list(zip(loaded._images, loaded._labels, strict=True))  # it has no other way to say


def _cifar(loaded: Any, root: Path) -> list[Entry]:
    """Its pixels as files, for photos are read from files; they are written once."""
    folder = root / f"{type(loaded).__name__.lower()}-png" / ("train" if loaded.train else "test")
    if not folder.exists():
        try:
            with alone(root / ".lock"):
                if not folder.exists():
                    _write(loaded, folder)
        except OSError as error:  # nothing is wrong with the set
            raise Unavailable(
                f"{folder}, where its photos are to lie as files, can't be written "
                f"({first_line(error)})"
            ) from error
    return [(folder / f"{i:05}.png", label) for i, label in enumerate(loaded.targets)]


def _write(loaded: Any, folder: Path) -> None:
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for i, pixels in enumerate(loaded.data):
        Image.fromarray(pixels).save(beside / f"{i:05}.png")
    beside.rename(folder)


_THREE: _Splits = {split: {"split": split} for split in SPLITS}
_TWO: _Splits = {split: {"split": split} for split in ("train", "test")}
_CIFAR: _Splits = {"train": {"train": True}, "test": {"train": False}}

NAMED: dict[str, Named] = {
    "cats-vs-dogs": Named(
        loader=_paths(_of("trainer.cats_vs_dogs", "cats_vs_dogs")),
        folder="cats-vs-dogs",
        splits={None: {}},
    ),
    "oxford-iiit-pet": Named(
        loader=_torchvision("OxfordIIITPet"),
        folder="oxford-iiit-pet",
        splits={"train": {"split": "trainval"}, "test": {"split": "test"}},
        entries=_pets,
    ),
    "flowers102": Named(
        loader=_paths(_torchvision("Flowers102")), folder="flowers-102", splits=_THREE
    ),
    "food101": Named(loader=_paths(_torchvision("Food101")), folder="food-101", splits=_TWO),
    "fgvc-aircraft": Named(
        loader=_paths(_torchvision("FGVCAircraft")), folder="fgvc-aircraft-2013b", splits=_THREE
    ),
    "dtd": Named(loader=_paths(_torchvision("DTD")), folder="dtd", splits=_THREE),
    "eurosat": Named(loader=_paths(_torchvision("EuroSAT")), folder="eurosat", splits={None: {}}),
    "imagenette": Named(  # its val is what results are reported on
        loader=_paths(_torchvision("Imagenette")),
        folder="imagenette2",
        splits={"train": {"split": "train"}, "test": {"split": "val"}},
    ),
    "cifar10": Named(
        loader=_torchvision("CIFAR10"), folder="cifar-10-batches-py", splits=_CIFAR, entries=_cifar
    ),
    "cifar100": Named(
        loader=_torchvision("CIFAR100"), folder="cifar-100-python", splits=_CIFAR, entries=_cifar
    ),
}


def find_named(name: str, root: Path) -> list[Found]:
    """The photos of NAMED[`name`] below `root`, where its loader has or will put them.

    Downloaded if they are not there. Raises Unavailable where that fails, InvalidData where what is
    there is not whole.
    """
    root = root.expanduser().absolute()
    named, found = NAMED[name], []
    for split, how in named.splits.items():
        try:
            loaded = _load(name, root, how)
            entries = named.entries(loaded, root)
            if not entries:  # else a split of our own would stand in for the official one
                raise ValueError(f"no photo of {split or 'it'}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidData(
                f"{name} in {root} can't be read ({error}); remove {named.folder} there, and it is "
                "downloaded anew"
            ) from error
        labels = [_label(each) for each in loaded.classes]
        found += [
            Found(path=path, file=path.relative_to(root).as_posix(), label=labels[i], split=split)
            for path, i in entries
        ]
    return found


def _label(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else name[0]  # the rest are synonyms


def _load(name: str, root: Path, how: Mapping[str, Any]) -> Any:
    named = NAMED[name]
    place = root / named.folder
    with suppress(RuntimeError):  # so the loaders say that it is not there, or not whole
        return named.loader(root, **how)
    try:
        if not place.exists():
            with alone(root / ".lock"):
                if not place.exists():  # else another process has just fetched it
                    _fetch(named, root / f".{name}.part", how)
    except _FETCH_FAILED as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the server's answer
        reason = first_line(error)
        raise Unavailable(
            f"{name} is not in {root} and can't be downloaded ({reason}); where there is a network,"
            f" run the same command with --datasets DIR and bring DIR here, or give --data FOLDER"
        ) from error
    try:
        return named.loader(root, **how)
    except RuntimeError as error:
        raise ValueError("not all of it is there, or it is damaged") from error


def _fetch(named: Named, beside: Path, how: Mapping[str, Any]) -> None:
    """Download to a folder beside, so that half of a data set is never taken for the whole."""
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        named.loader(beside, download=True, **how)
        for part in beside.iterdir():
            os.replace(part, beside.parent / part.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

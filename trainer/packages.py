"""The packages of the extra `train`: asked for before any work, and their versions on record."""

import importlib
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from serving.errors import InvalidRequest, lacks

# ONNX Runtime comes as one of several; which of them is there, the versions tell.
ONNX_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")

_WANTED = (
    *("torch", "torchvision", "onnx", "onnxruntime", "safetensors", "scipy", "matplotlib"),
    *("tensorboard", "threadpoolctl"),
    "onnxscript",  # PyTorch's exporter asks for it, when all has been trained
)


def require_packages() -> None:
    """Raises InvalidRequest, naming one that is missing or can't be loaded."""
    for package in _WANTED:
        try:
            importlib.import_module(package)
        except Exception as error:  # one that doesn't fit the others raises what it likes
            raise InvalidRequest(lacks("this", package, error, "train")) from error


def outdated() -> list[str]:
    """In words, which are older than Pawprint asks for; of one that is not installed, but runs from
    its folder, none."""
    try:
        lines = requires("pawprint") or []
    except PackageNotFoundError:
        return []
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    asked = {bound[1]: bound[2] for bound in bounds if bound}
    wanted = {*_WANTED, *ONNX_RUNTIMES} & asked.keys()
    return [
        f"{package} is {found}, older than the {asked[package]} that Pawprint asks for"
        for package, found in versions_of(sorted(wanted)).items()
        if _numbers(found) < _numbers(asked[package])
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """2.11.0a0+nv25.10, of a vendor's image, is not older than 2.11."""
    numbers = [int(part) for part in re.split(r"[^\d.]", version)[0].split(".") if part]
    return (*numbers, 0, 0, 0)[:3]


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """By name, of those that are installed: what runs from its folder need not be."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

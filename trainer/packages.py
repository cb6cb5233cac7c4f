"""The packages of the extra `train`: asked for before any work, and their versions on record."""

import importlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

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


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """By name, of those that are installed: what runs from its folder need not be."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""Console scripts of commands whose packages an installation may lack: one line says so."""

import importlib
import sys

from serving.errors import to_install

_OURS = ("protos", "serving", "trainer")


def train() -> int:
    return _start("trainer.train", "train")


def analyze() -> int:
    return _start("trainer.analysis.analyze", "train")


def serve() -> int:
    return _start("serving.serve", "serve")


def classify() -> int:
    return _start("serving.classify", "client")


def models() -> int:
    return _start("serving.models", "client")


def _start(module: str, extra: str) -> int:
    try:
        return int(importlib.import_module(module).main() or 0)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        print(
            f"error: this needs the package {error.name}; {to_install(extra)}",
            file=sys.stderr,
        )
        return 2

"""The console scripts `train` and `analyze`, which a server alone brings along as well."""

import importlib
import sys

_OURS = ("protos", "serving", "trainer")


def train() -> int:
    return _start("trainer.train")


def analyze() -> int:
    return _start("trainer.analysis.analyze")


def _start(module: str) -> int:
    try:
        return int(importlib.import_module(module).main())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        print(
            f"error: this needs the package {error.name}: pip install 'pawprint[train]'",
            file=sys.stderr,
        )
        return 2

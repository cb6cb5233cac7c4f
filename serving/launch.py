"""Console scripts of commands whose packages an installation may lack: one line says so."""

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process as it would end any other, without a traceback: packages take seconds
    to import, and numpy makes an ImportError of it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start(module: str, extra: str) -> int:
    try:
        with _interruptible():
            main = importlib.import_module(module).main
        return int(main() or 0)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        print(
            f"error: this needs the package {error.name}; {to_install(extra)}",
            file=sys.stderr,
        )
        return 2

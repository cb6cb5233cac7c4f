"""How commands start whose packages an installation may lack: one line says so."""

import atexit
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from serving.errors import lacks

_OURS = ("protos", "serving", "trainer")


def train() -> int:
    return _start("trainer.train", "train")


def analyze() -> int:
    return _start("trainer.analysis.analyze", "train")


def serve() -> int:
    # Packages take seconds to import, and until something is done at a SIGHUP it ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    return _start("serving.serve", "serve")


def classify() -> int:
    return _start("serving.classify", "client")


def models() -> int:
    return _start("serving.models", "client")


def probe() -> int:
    return _start("serving.probe", "serve")


def make_shards() -> int:
    return _start("trainer.make_shards", "train")


def _end(number: int, _: object) -> Never:
    os._exit(128 + number)


def _first_process() -> bool:
    """Of a container, as a rule: the kernel keeps from it what it does not handle itself."""
    return os.getpid() == 1


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the process as it would end any other, without a traceback: packages take seconds
    to import, and numpy makes an ImportError of it; a pool would wait for its threads."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end if _first_process() else signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _open_standard_descriptors() -> None:
    """One that is closed (`2>&-`) would be the next file's or connection's, into which libraries
    would then write their messages, and which uvloop aborts at instead of closing it. Python has
    None for it, and `print` writes to stdout then what is for stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _start(module: str, extra: str) -> int:
    _open_standard_descriptors()
    # The last of all exit functions: then Python takes seconds to let go of torch. What is done is
    # done, and Ctrl-C would only make another status of it.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if _first_process() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    try:
        os.getcwd()
    except FileNotFoundError:
        if extra == "train":  # for want of it MKL would say that it can't load torch
            gone = "the current folder is no longer there; change to another"
            print(f"error: {gone}", file=sys.stderr)
            return 2
    return go_on(module, extra)


def go_on(module: str, extra: str, *arguments: object) -> int:
    """The exit status of `main(*arguments)` of the module, imported now; 2, and a line on stderr,
    for a package that is missing or can't be loaded."""
    loading = True
    try:
        with interruptible():
            main = importlib.import_module(module).main
        loading = False
        return int(main(*arguments) or 0)
    except Exception as error:
        # Packages that don't fit each other raise what they like, but where they are imported.
        if not loading and not isinstance(error, ImportError):
            raise
        package = getattr(error, "name", None) or _blamed(error)
        if package is None or package.partition(".")[0] in _OURS:
            raise
        if not isinstance(error, ModuleNotFoundError):
            package = package.partition(".")[0]
        print(f"error: {lacks('this', package, error, extra)}", file=sys.stderr)
        return 2


def _blamed(error: Exception) -> str | None:
    """The package that raised it, or the one that ours imported which that belongs to; None: ours
    did."""
    blamed = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _OURS:
            blamed = None
        elif blamed is None and package != "importlib":
            blamed = package
    return blamed

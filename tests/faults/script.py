"""How the scripts of this folder begin and end: `python -m tests.faults.NAME` in the root."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tests.conftest import ServerProcess, start_server
from tests.tiny import build_version


def conclude(run: Callable[[Path], Awaitable[bool]]) -> NoReturn:
    """Run it with a folder of its own; exit with 1 unless it returns True."""
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pawprint-") as folder:
        sound = asyncio.run(run(Path(folder)))
    print(f"load {os.getloadavg()[0]:.1f}; {'sound' if sound else 'NOT SOUND'}")
    sys.exit(0 if sound else 1)


@contextmanager
def tiny_server(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """`serve` with the tiny version of the tests as pets/1; does not outlive the block."""
    build_version(folder / "models", "pets", size=32)
    server = start_server(folder / "models", folder, *flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def stopped_clean(server: ServerProcess) -> bool:
    """Stop it; whether it ended with status 0 and never met an error that it did not expect."""
    status, _, err = server.stop()
    clean = status == 0 and "Traceback" not in err and "unexpected" not in err
    if not clean:
        print(f"the server ended with status {status} and said:\n{err[-4000:]}")
    return clean

"""Threads that compute come after the event loop, under overload above all."""

import os
import sys
from pathlib import Path

import pytest

from serving.client import Client
from tests.photos import jpeg


def niceness(pid: int) -> dict[int, int]:
    """Of each thread."""
    return {
        int(thread.name): int((thread / "stat").read_text().rpartition(")")[2].split()[16])
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_what_decodes_and_infers_goes_behind_the_event_loop(models: Path, start) -> None:
    cores = min(2, os.cpu_count() or 1)
    flags = ("--cores", str(cores), "--decode-threads", "2")
    server = start(models, *flags)
    with Client(server.address) as client:
        for _ in range(4):
            client.classify([jpeg()] * 8, model="pets")
    found = niceness(server.process.pid)
    ours = os.nice(0)
    assert found[server.process.pid] == ours  # the event loop's thread
    assert sum(nice > ours for nice in found.values()) == cores + 2 or ours == 19

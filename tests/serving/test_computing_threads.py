"""Threads that compute come after the event loop, under overload above all, and are there before
any call is."""

import os
import subprocess
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


SHORT_OF_THREADS = """
import os, resource, threading
from serving.decoding import Decoders
from serving.errors import Unavailable
from serving.turns import Priority

os.setuid(61234)  # root's are not counted
_, most = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (1, most))
try:
    Decoders(4)
except Unavailable as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
decoders, done = Decoders(4), threading.Semaphore(0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, most))
for _ in range(10):
    decoders.start([lambda before_large: done.release()] * 3, "a", Priority.HIGH)
    for _ in range(3):
        assert done.acquire(timeout=10)
decoders.close()
"""


def test_all_are_there_from_the_start_or_it_is_said() -> None:
    """A call whose photos no thread could be had for failed, and left them for the next ones to
    decode, which were then never done with their own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user whose threads are counted")
    script = [sys.executable, "-c", SHORT_OF_THREADS]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("4 threads for decoding can't be had")

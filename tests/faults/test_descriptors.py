"""A server that has no file descriptor left: it takes no more connections, and recovers."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.client import Client
from serving.errors import DeadlineExceeded, Unavailable
from serving.repository import Repository
from tests.conftest import ServerProcess
from tests.faults.process import cpu_s, descriptors
from tests.faults.script import stopped_clean
from tests.photos import jpeg
from tests.serving.held_model import until
from tests.tiny import build_version

LIMIT = 64


@pytest.fixture
def server(models: Path, start: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    yield start(models, "--poll-s", "0.1")


def answered(client: Client) -> int:
    return client.classify([jpeg()], model="pets", timeout_s=10).version


def test_descriptors_that_run_out_and_come_back(models: Path, server: ServerProcess) -> None:
    host, _, port = server.address.partition(":")
    pid = server.process.pid
    with Client(server.address) as here:
        assert answered(here) == 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        with ExitStack() as crowd:
            for _ in range(2 * LIMIT):
                where = (host, int(port))
                crowd.enter_context(socket.create_connection(where, timeout=5))
            asyncio.run(until(lambda: descriptors(pid) == LIMIT))
            assert [answered(here) for _ in range(20)] == [1] * 20  # who is there stays served
            with Client(server.address) as late, pytest.raises((DeadlineExceeded, Unavailable)):
                late.classify([jpeg()], model="pets", timeout_s=1)
            build_version(models, "pets", seed=1)  # it can't be opened now
            begin, used = time.monotonic(), cpu_s(pid)
            time.sleep(1)
            busy = (cpu_s(pid) - used) / (time.monotonic() - begin)
            assert busy < 0.5, f"it spends {busy:.0%} of a core on what it can't have"
            assert answered(here) == 1
        with Client(server.address) as late:
            assert answered(late) in (1, 2)
        asyncio.run(until(lambda: answered(here) == 2))
    assert Repository(models).versions("pets") == [1, 2]
    assert stopped_clean(server)

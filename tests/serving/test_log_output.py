"""A reader of stderr that stalls: what it costs, and what it must not."""

import asyncio
import fcntl
import json
import logging
import os
import pty
import random
import resource
import select
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos.inference import grpc_service_pb2
from serving.client import Client
from serving.log_output import LAST_S, MOST_BYTES, LineHandler
from tests.certificates import Authority
from tests.conftest import ServerProcess
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.test_inference_protocol import Stub
from tests.serving.test_metrics import Scrape
from tests.waiting import until

PIPE_BYTES = 64 * 1024
DROPPED = "{} lines of the log were dropped: stderr did not take them"


class Reader:
    """One end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.text = ""

    def lines(self) -> list[str]:
        """All that came, and what is there now."""
        os.set_blocking(self.descriptor, False)
        try:
            while some := os.read(self.descriptor, 50_000):
                self.text += some.decode()
        except BlockingIOError:
            pass
        return self.text.splitlines()

    def until_read(self, line: str) -> list[str]:
        until(lambda: line in self.lines())
        return self.lines()


class Log:
    """A logger that writes to a new pipe; shared: through a description that others may have."""

    def __init__(self, *, shared: bool = False) -> None:
        ours, self.descriptor = os.pipe()
        self.reader = Reader(ours)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            if shared:  # there can be no descriptor for one
                resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            self.handler = LineHandler(self.descriptor)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.get_blocking(self.descriptor) == shared
        self.logger = logging.Logger("test")
        self.logger.addHandler(self.handler)

    def close(self) -> None:
        self.handler.close()
        os.close(self.descriptor)
        os.close(self.reader.descriptor)


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    made = Log(shared=request.param)
    yield made
    made.close()


def test_lines_of_several_threads_are_whole_and_in_their_order(log: Log) -> None:
    """The reader is behind, so that threads find the pipe full, or full to a part of a line."""
    threads, each = 4, 300

    def write(thread: int) -> None:
        lengths = random.Random(thread)
        for number in range(each):
            length = lengths.choice([1, 300, 300, 300, 6_000])
            log.logger.warning("%d %d %s", thread, number, str(thread) * length)

    running = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        if select.select([log.reader.descriptor], [], [], 0.01)[0]:
            log.reader.text += os.read(log.reader.descriptor, 2_000).decode()
    log.logger.warning("end")
    *lines, end = log.reader.until_read("end")
    assert end == "end" and log.handler.dropped == 0
    numbers: list[list[int]] = [[] for _ in range(threads)]
    for line in lines:
        thread, number, text = line.split(" ")
        assert {*text} == {thread} and len(text) in (1, 300, 6_000)
        numbers[int(thread)].append(int(number))
    assert numbers == [[*range(each)]] * threads


def test_what_a_reader_that_stalls_does_not_get_is_bounded_and_told(log: Log) -> None:
    text = "x" * 1_000
    many = 2 * MOST_BYTES // len(text)
    for number in range(many):
        log.logger.warning("%d %s", number, text)
    dropped = log.handler.dropped
    assert log.handler._bytes <= MOST_BYTES
    got = log.reader.until_read(DROPPED.format(dropped))  # though nobody logs any more
    kept = many - dropped
    assert MOST_BYTES <= kept * len(text) <= MOST_BYTES + 2 * PIPE_BYTES
    assert got == [*(f"{number} {text}" for number in range(kept)), DROPPED.format(dropped)]
    log.logger.warning("and on")
    assert log.reader.until_read("and on")[kept:] == [DROPPED.format(dropped), "and on"]


def test_a_line_that_is_longer_than_the_pipe(log: Log) -> None:
    line = "long" * PIPE_BYTES
    log.logger.warning("%s", line)
    log.logger.warning("next")
    assert log.reader.until_read("next") == [line, "next"]


def test_the_end_waits_for_no_reader(log: Log) -> None:
    log.logger.warning("%s", "x" * 2 * PIPE_BYTES)
    begin = time.monotonic()
    log.handler.close()
    assert LAST_S <= time.monotonic() - begin < LAST_S + 5


def test_others_who_have_the_pipe_may_block_on_it_as_before() -> None:
    reader, theirs = os.pipe()
    ours = os.dup(theirs)
    LineHandler(ours).close()
    assert (os.get_blocking(theirs), os.get_blocking(ours)) == (True, False)
    for descriptor in (reader, theirs, ours):
        os.close(descriptor)


@pytest.mark.parametrize("left", ["reader", "writer"])
def test_what_can_not_be_written_is_counted(left: str) -> None:
    log = Log()
    number = log.reader.descriptor if left == "reader" else log.descriptor
    os.close(number)
    for _ in range(3):
        log.logger.warning("a line")
    assert log.handler.dropped == 3
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
    log.close()


def test_a_terminal_that_is_held() -> None:
    """Ctrl-S, or a connection that hangs."""
    screen, terminal = pty.openpty()
    reader, handler = Reader(screen), LineHandler(terminal)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    os.write(screen, b"\x13")
    for number in range(1_000):
        logger.warning("%d %s", number, "x" * 100)
    os.write(screen, b"\x11")
    got = reader.until_read("999 " + "x" * 100)
    assert got == [f"{number} {'x' * 100}" for number in range(1_000)]
    handler.close()
    os.close(screen)
    os.close(terminal)


Stalled = tuple[ServerProcess, Reader]


@pytest.fixture
def stalled(models: Path, tmp_path: Path, start) -> Iterator[Callable[..., Stalled]]:
    """`serve` with a line for each call on a pipe that nobody reads."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = Reader(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))

    def begin(*flags: str, redirected: str = "2>{}") -> Stalled:
        script = f'exec "$@" {redirected.format(pipe)}'
        program = ("-c", script, "sh", sys.executable, "-m", "serving.serve")
        flags = ("--access-log", "on", "--log-format", "json", *flags)
        return start(models, *flags, python="sh", program=program), reader

    yield begin
    os.close(reader.descriptor)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_answers_and_ends_though_nobody_reads_its_log(
    stalled: Callable[..., Stalled], workers: str
) -> None:
    server, reader = stalled("--workers", workers)
    for _ in range(8):  # connections, of which each worker has some
        with Client(server.address) as client:
            for _ in range(100):
                assert client.classify([jpeg()], model="pets", timeout_s=10).version == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    lines = [json.loads(line) for line in reader.lines()]
    assert len(lines) > 100 and {"serving.access"} < {line["logger"] for line in lines}


def test_lines_of_grpc_itself_hold_up_no_stop(
    stalled: Callable[..., Stalled], tmp_path: Path
) -> None:
    """Here of handshakes that fail: its threads write them, and would block on a full pipe."""
    pair = Authority(tmp_path / "authority").sign("server")
    server, reader = stalled("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
    host, _, port = server.address.partition(":")

    def filled() -> bool:
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=10) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        waiting = fcntl.ioctl(reader.descriptor, termios.FIONREAD, bytes(4))
        return int.from_bytes(waiting, sys.byteorder) > PIPE_BYTES * 0.9

    until(filled)
    assert all(filled() for _ in range(5))  # lines of these find no room
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_is_started_before_a_full_pipe(
    stalled: Callable[..., Stalled], tmp_path: Path, workers: str
) -> None:
    """Of a logger that hangs, and has outlived the server before it."""
    before = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    assert os.write(before, b"x\n" * PIPE_BYTES) == PIPE_BYTES
    os.close(before)
    server, reader = stalled("--workers", workers, redirected=">{} 2>&1")
    with Client(server.address) as client:
        assert client.classify([jpeg()], model="pets", timeout_s=10).version == 1
    announced = f"serving on {server.address}: pets/1"  # in the log, unless this reads soon enough
    until(lambda: any(announced in line for line in reader.lines()))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


AT_ONCE = 100


async def ready_calls(address: str, ids: list[str]) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        ready = Stub(channel).ServerReady
        for some in (ids[i : i + AT_ONCE] for i in range(0, len(ids), AT_ONCE)):
            asked = grpc_service_pb2.ServerReadyRequest()
            calls = [ready(asked, metadata=[("x-request-id", one)], timeout=10) for one in some]
            assert all(answer.ready for answer in await asyncio.gather(*calls))


@pytest.mark.slow
def test_once_its_log_is_read_again_a_server_tells_what_was_lost(
    stalled: Callable[..., Stalled],
) -> None:
    port = free_port()
    server, reader = stalled("--metrics-port", str(port))
    ids = [f"{number:0128}" for number in range(MOST_BYTES // 300)]
    asyncio.run(ready_calls(server.address, ids))
    dropped = int(Scrape(port).value("pawprint_log_lines_dropped_total"))
    until(lambda: "were dropped" in "".join(reader.lines()[-1:]))
    *lines, told = [json.loads(line) for line in reader.lines()]
    assert told["message"] == DROPPED.format(dropped)
    assert dropped > 0 and told["level"] == "WARNING"
    got = [line["request_id"] for line in lines if line["logger"] == "serving.access"]
    assert len({*got}) == len(got) == len(ids) - dropped
    whole = len(got) // AT_ONCE * AT_ONCE  # calls at once end in any order
    assert {*ids[:whole]} <= {*got} <= {*ids[: whole + AT_ONCE]}
    status, _, _ = server.stop()
    assert status == 0 and '"stopped"' in "".join(reader.lines()[-1:])

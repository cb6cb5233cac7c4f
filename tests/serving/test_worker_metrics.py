"""`serve --workers 2 --metrics-port`: what both did, under one port."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from serving.client import Client
from serving.worker_metrics import WorkerMetrics
from tests.commands import run_python
from tests.conftest import ServerProcess
from tests.photos import jpeg
from tests.ports import free_ports
from tests.serving.test_metrics import Scrape, fetch
from tests.serving.test_workers import workers_of
from tests.waiting import until

CLIENTS, CALLS = 30, 1


def test_the_metrics_of_all_workers_are_gathered(
    start: Callable[..., ServerProcess], models: Path
) -> None:
    port, *_of_workers = free_ports(3)
    flags = ("--workers", "2", "--control", "none", "--metrics-port", str(port))
    server = start(models, *flags)
    until(lambda: fetch(port, "/readyz")[0] == 200)
    for _ in range(CLIENTS):  # a connection each: the kernel deals them out
        with Client(server.address) as client:
            for _ in range(CALLS):
                client.classify([jpeg()], model="pets")
    said = Scrape(port)
    calls = "pawprint_calls_total"
    by_worker = [said.value(calls, method="Classify", code="OK", worker=w) for w in ("0", "1")]
    assert sum(by_worker) == said.value(calls, method="Classify") == CLIENTS * CALLS
    assert min(by_worker) > 0  # all go to one by chance once in 2 ** 29
    assert said.value("pawprint_stage_seconds_count", stage="decode") == CLIENTS * CALLS
    assert said.value("pawprint_worker_up") == 2
    assert said.value("process_resident_memory_bytes", worker="1") > 1e6
    os.kill(min(workers_of(server)), signal.SIGKILL)
    until(lambda: Scrape(port).value("pawprint_worker_up") == 1)
    until(lambda: fetch(port, "/readyz")[0] == 200)
    until(lambda: Scrape(port).value("pawprint_worker_up") == 2)
    status, _, err = server.stop()
    assert status == 0, err


def test_workers_that_hang_hold_up_no_probe() -> None:
    with ExitStack() as stack:
        ports = []
        for _ in range(3):
            hung = stack.enter_context(socket.socket())
            hung.bind(("127.0.0.1", 0))
            hung.listen()
            ports.append(hung.getsockname()[1])
        gathered = WorkerMetrics(ports)
        begun = time.monotonic()
        assert not gathered.ready()
        assert time.monotonic() - begun < 2.0
        (up,) = gathered.collect()
        assert [sample.value for sample in up.samples] == [0.0] * 3


def test_a_metrics_port_that_is_taken_starts_no_worker(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_python(
            *("-m", "serving.serve", "--models", models, "--port", 0, "--device", "cpu"),
            *("--workers", 2, "--metrics-port", port),
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: can't serve metrics on 127.0.0.1:{port}"
    )
    assert done.stdout == ""

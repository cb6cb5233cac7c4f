"""A server from its start to its end: health, reflection, signals, drain."""

import asyncio
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.client import AsyncClient, Client
from serving.engine import Engine
from serving.errors import Unavailable
from serving.server import SERVICE, Server
from serving.settings import ServerSettings
from tests.commands import run_python
from tests.conftest import ROOT, Running, running_server
from tests.faults.process import MIB
from tests.object_store import s3_environment
from tests.photos import jpeg, slow_png
from tests.ports import free_port
from tests.serving.held_model import HeldModel, until
from tests.serving.test_service import request
from tests.tiny import build_version

SERVE = ("-m", "serving.serve")

Status = health_pb2.HealthCheckResponse


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_follows_the_life_of_the_server(models: Path) -> None:
    server = Server(ServerSettings(models=models, port=0, device="cpu"))
    port = await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        for service in ("", SERVICE):
            assert await health(channel, service) == Status.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(request(jpeg()))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "still loading" in caught.value.details()
        await server.load()
        for service in ("", SERVICE):
            assert await health(channel, service) == Status.SERVING
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert (await watch.read()).status == Status.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(channel, "pawprint.v1.Nonesuch")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await stub.Classify(request(jpeg()))
        start = time.monotonic()
        await server.drain()
        assert time.monotonic() - start < 10  # the watcher does not hold it for all of drain_s
    await server.close()


async def test_reflection_lists_and_describes_the_services(running: Running) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {s.name for s in (await call.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= listed
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        await call.write(symbol)
        files = (await call.read()).file_descriptor_response.file_descriptor_proto
        assert any(b"ClassifyStreamRequest" in file for file in files)
        await call.done_writing()


async def test_a_server_that_is_closed_leaves_no_thread_and_no_port(models: Path) -> None:
    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name.startswith(("decoding", "inference"))}

    before, port = threads(), free_port()
    async with running_server(models, metrics_port=port) as running:
        async with AsyncClient(running.address) as client:
            await client.classify([jpeg()], model="pets")
        kinds = {thread.name.partition("-")[0] for thread in threads() - before}
        assert kinds == {"decoding", "inference"}
        socket.create_connection(("127.0.0.1", port)).close()
    await until(lambda: not threads() - before)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_drain_lets_calls_finish_and_refuses_new_ones(running: Running) -> None:
    held = HeldModel(running.server)
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        calls = [stub.Classify(request(jpeg(seed=seed))) for seed in range(5)]
        stream = stub.ClassifyStream()
        await stream.write(pb.ClassifyStreamRequest(request_id=5, request=request(jpeg())))
        await held.admitted(6)
        draining = asyncio.ensure_future(running.server.drain())
        await until(lambda: not running.server._edge.ready)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(request(jpeg()), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        held.release()
        for call in calls:
            assert (await call).version == 1
        assert (await stream.read()).response.version == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(draining, 5)


@asynccontextmanager
async def slow_uplink(address: str, bytes_per_s: float) -> AsyncIterator[str]:
    """The address of a proxy that lets no more pass towards `address`."""
    host, _, port = address.rpartition(":")

    async def copy(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, pause_s: float
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
                await asyncio.sleep(len(data) * pause_s)
        sink.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, up_writer, 1 / bytes_per_s), copy(up_reader, writer, 0))

    async with await asyncio.start_server(join, "127.0.0.1", 0) as proxy:
        yield "{}:{}".format(*proxy.sockets[0].getsockname())


async def test_a_drain_waits_for_a_photo_that_is_still_being_sent(running: Running) -> None:
    async with (
        slow_uplink(running.address, 3e6) as address,
        grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel,
        grpc.aio.insecure_channel(running.address) as watching,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        await stub.Classify(request(jpeg()))
        watch = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == Status.SERVING
        call = stub.Classify(request(jpeg() + bytes(12_000_000)))  # of 4 s
        sent = asyncio.ensure_future(call)
        await asyncio.sleep(0.5)
        begin = time.monotonic()
        await running.server.drain()
        assert (await sent).version == 1
        assert time.monotonic() - begin < 15  # half of drain_s: the watch did not hold it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_calls_in_flight_and_ends_with_status_0(
    models: Path, start, number: int
) -> None:
    server = start(models, "--decode-threads", "1")
    with grpc.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        message = request(slow_png())
        calls = [stub.Classify.future(message, timeout=60) for _ in range(40)]
        while not any(call.done() for call in calls):  # the others are waiting or being decoded
            time.sleep(0.005)
        assert not all(call.done() for call in calls)
        status, out, err = server.stop(number, within_s=60)
        assert [call.result().version for call in calls] == [1] * 40
    assert status == 0, err
    assert out.splitlines() == [f"serving on {server.address}: pets/1 (fp32 on cpu)"]
    assert "stopped" in err and "Traceback" not in err
    with Client(server.address) as client, pytest.raises(Unavailable):
        client.list_models()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_upon_signals_change_no_status(models: Path, start, workers: str) -> None:
    server = start(models, "--workers", workers)
    numbers = itertools.cycle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    while server.process.poll() is None:
        server.process.send_signal(next(numbers))
        time.sleep(0.002)  # it has to do more than to take them
    status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_server_whose_standard_streams_are_closed_ends_with_status_0(
    models: Path, start, closed: str
) -> None:
    """uvloop aborts where it has to close what got one of their numbers."""
    script = f'exec "$@" {closed}'
    server = start(models, python="sh", program=("-c", script, "sh", sys.executable, *SERVE))
    for number in range(3):
        assert not os.readlink(f"/proc/{server.process.pid}/fd/{number}").startswith("anon")
    with Client(server.address) as client:
        assert client.classify([jpeg()], model="pets").version == 1
    status, _, _ = server.stop()
    assert status == 0


def test_a_stop_is_the_same_where_no_thread_can_be_had(models: Path, start) -> None:
    """As in a container that has as many as it may have; here for want of room for its stack."""
    server = start(models, "--control", "none")
    pid = server.process.pid
    mapped = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped + 4 * MIB, mapped + 4 * MIB))
    status, _, err = server.stop()
    assert status == 0 and "stopped" in err and "Traceback" not in err, err


def test_a_stop_while_loading_ends_with_status_0(tmp_path: Path) -> None:
    for number in range(60):
        build_version(tmp_path / "models", f"pets-{number}")
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "serving.serve", "--models", str(tmp_path / "models")),
            *("--port", str(port), "--device", "cpu"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:  # it listens before it loads
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, ""), err
    assert "stopped" in err and "Traceback" not in err


def test_a_stop_does_not_wait_for_what_can_not_be_cut_short() -> None:
    """Here for a store that takes connections and never answers."""
    pytest.importorskip("s3fs")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.serve", "--models", "s3://bucket/models", "--port=0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | s3_environment(silent.getsockname()[1]),
        )
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                begin = time.monotonic()
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, ""), err
    assert "not all is over 5 s after the signal" in err and "Traceback" not in err
    assert time.monotonic() - begin < 15


def run_serve(*flags: str) -> "subprocess.CompletedProcess[str]":
    return run_python("-m", "serving.serve", *flags)


def test_no_model_is_status_1_and_a_clear_error(tmp_path: Path) -> None:
    done = run_serve("--models", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no model to serve in")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("versions", ["99", "alias"])
def test_where_no_version_is_asked_for_none_is_called_refused(models: Path, versions: str) -> None:
    done = run_serve("--models", str(models), "--port", "0", "--versions", versions)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: no model to serve in")
    assert f": versions is {versions}, and none there is of these;" in last


def test_where_every_version_is_refused_the_last_line_says_why(models: Path) -> None:
    done = run_serve("--models", str(models), "--port", "0", "--precision", "int8")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: no model to serve in") and "use --precision auto)" in last


def test_a_taken_port_is_status_2_and_not_shared(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_serve("--models", str(models), "--port", str(port))
    assert done.returncode == 2
    said = f"error: can't listen on 127.0.0.1:{port} (Address already in use); is another server"
    assert said in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_of_no_machine_is_told_as_such(models: Path, workers: str) -> None:
    flags = ("--models", str(models), "--port", "0", "--host", "::g", "--workers", workers)
    for done in (run_serve(*flags, "--check"), run_serve(*flags)):
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith("error: can't listen on [::g]:0 (")
        assert last.endswith("): it must be an address of this machine")


@pytest.mark.parametrize("place", ["admin", "metrics"])
def test_a_check_looks_at_the_other_addresses_that_are_listened_on(
    models: Path, place: str
) -> None:
    flags = ["--models", str(models), f"--{place}-host", "192.0.2.1"]  # RFC 5737: nobody's
    assert run_serve(*flags, "--check").returncode == 0
    done = run_serve(*flags, f"--{place}-port", "9", "--check")
    assert done.returncode == 2 and "error: can't listen on 192.0.2.1:9 (" in done.stderr


def test_a_second_server_does_not_share_the_port(models: Path, start) -> None:
    first = start(models)
    port = first.address.rpartition(":")[2]
    done = run_serve("--models", str(models), "--port", port)
    assert done.returncode == 2 and "can't listen" in done.stderr


def test_a_wrong_setting_is_status_2_and_one_line(models: Path) -> None:
    done = run_serve("--models", str(models), "--max-batch", "many")
    assert (done.returncode, done.stderr) == (2, "error: --max-batch: expected int, got 'many'\n")


def test_the_port_file_of_an_earlier_server_says_nothing(tmp_path: Path) -> None:
    left = tmp_path / "port"
    left.write_text("1\n")
    flags = ("--models", str(tmp_path / "none"), "--port", "0", "--port-file", str(left))
    assert run_serve(*flags).returncode != 0 and not left.exists()


@pytest.mark.parametrize("place", ["/nowhere/port", "/tmp", "pipe", "link", "a" * 300])
def test_a_port_file_that_can_not_be_written_is_status_2(
    models: Path, tmp_path: Path, place: str
) -> None:
    """Before anything is loaded; and what is no file, such as /dev/stdout, is never replaced."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    port_file = str(tmp_path / place)
    flags = ("--models", str(models), "--port", "0", "--port-file", port_file, "--device", "cpu")
    for done in (run_serve(*flags, "--check"), run_serve(*flags)):
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("error: the port file can't be written")
        assert len(done.stderr.splitlines()) == 2  # after that of the cores
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_the_reason_for_the_cpu_is_one_line(models: Path, start) -> None:
    server = start(models, "--device", "auto")
    _, _, err = server.stop()
    assert len([line for line in err.splitlines() if "device: " in line]) == 1
    assert all(line[:2] == "20" for line in err.splitlines()), err  # dated lines of ours alone


@pytest.mark.parametrize(
    ("pad", "sizes"),
    [("on", {1, 2, 4, 8, 10}), ("off", {1, 10})],  # unpadded, the largest makes room for all
)
async def test_first_calls_run_nothing_for_the_first_time(
    models: Path, monkeypatch: pytest.MonkeyPatch, pad: str, sizes: set[int]
) -> None:
    """Whatever size their batches have was run before the server was ready, alone and beside
    others; no such run comes later."""
    ran: list[tuple[int, bool] | str] = []
    run, on_change = Engine.run, Server._on_change

    def noted(engine: Engine, images: np.ndarray, *, alone: bool = True) -> object:
        ran.append((len(images), alone))
        return run(engine, images, alone=alone)

    async def ready(server: Server, catalogue: Catalogue) -> None:
        ran.append("ready")
        await on_change(server, catalogue)

    monkeypatch.setattr(Engine, "run", noted)
    monkeypatch.setattr(Server, "_on_change", ready)
    # A batch waits for all photos of its call.
    async with (
        running_server(models, pad=pad, max_batch=10, max_delay_ms=10_000) as running,
        AsyncClient(running.address) as client,
    ):
        before, after = ran[: ran.index("ready")], ran[ran.index("ready") + 1 :]
        assert set(before) >= set(itertools.product(sizes, (True, False))) and not after
        for photos in range(1, 11):
            await client.classify([jpeg()] * photos, model="pets")
    of_callers = ran[len(before) + 1 :]
    assert len(of_callers) == 10 and max(of_callers) == (10, True)
    assert pad == "off" or set(of_callers) <= set(before)

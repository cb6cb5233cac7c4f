"""A watcher of health that does not read, by frames of HTTP/2: no client does so by itself."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.async_client import AsyncClient
from serving.health import NOT_SERVING_S, Health
from serving.server import SERVICES, Server
from serving.settings import ServerSettings
from tests.conftest import Running
from tests.photos import jpeg
from tests.serving.frames import PREFACE, frame
from tests.serving.held_model import until

Status = health_pb2.HealthCheckResponse


@asynccontextmanager
async def never_reading_watcher(address: str) -> AsyncIterator[None]:
    """Asks for Health/Watch and makes no room for an answer: its window is 0."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    headers = {
        **{":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch"},
        **{":authority": "x", "content-type": "application/grpc", "te": "trailers"},
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    writer.write(
        PREFACE
        + frame(4, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE
        + frame(1, 4, 1, block)
        + frame(0, 1, 1, bytes(5))
    )
    answered = b""
    while b"application/grpc" not in answered:  # its headers: a status is to follow
        answered += await asyncio.wait_for(reader.read(4096), 20)
    yield
    writer.close()


async def test_every_method_of_the_service_is_there(running: Running) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await stub.List(health_pb2.HealthListRequest())
        assert {name: one.status for name, one in listed.statuses.items()} == dict.fromkeys(
            ("", *SERVICES), Status.SERVING
        )
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
    assert set(methods) <= set(vars(Health))


async def test_a_watcher_that_does_not_read_holds_up_neither_changes_nor_the_end(
    running: Running,
) -> None:
    server = running.server
    async with (
        never_reading_watcher(running.address),
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == Status.SERVING
        await asyncio.wait_for(server._on_change(server.catalogue), 10)
        await asyncio.wait_for(server.drain(), 20)


async def test_so_many_may_watch_and_no_more(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.health.MOST_WATCHERS", 2)
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
        first, second = stub.Watch(request), stub.Watch(request)
        for watch in (first, second):
            assert (await watch.read()).status == Status.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="call Check") as raised:
            await stub.Watch(request).read()
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with AsyncClient(running.address) as client:  # which would watch
            assert (await client.classify([jpeg()], model="pets")).results[0].labels
        assert (await stub.Check(request)).status == Status.SERVING
        first.cancel()
        await until(lambda: running.server._health._watchers == 1)
        assert (await stub.Watch(request).read()).status == Status.SERVING


async def test_whoever_watches_through_a_proxy_is_not_told_that_this_server_leaves(
    running: Running,
) -> None:
    """The proxy sends its calls to another, while these would end them all."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        assert (await watch.read()).status == Status.SERVING
        await asyncio.wait_for(running.server.drain(), 20)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()


async def test_a_watch_of_a_server_that_can_not_answer_ends(models: Path) -> None:
    """So that a client behind a proxy asks again, and may come to another server."""
    server = Server(ServerSettings(models=models, port=0, device="cpu"))
    port = await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(2):
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == Status.NOT_SERVING
            assert await asyncio.wait_for(watch.read(), 20) is grpc.aio.EOF
            assert await watch.code() is grpc.StatusCode.OK
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert (await unknown.read()).status == Status.SERVICE_UNKNOWN
        with pytest.raises(TimeoutError):  # it may come yet
            await asyncio.wait_for(unknown.read(), 2 * NOT_SERVING_S)
    await server.close()

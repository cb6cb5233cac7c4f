"""Several servers behind one client: balancing, retries, hedging."""

import asyncio
import collections
import math
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.channel import CHANNEL_OPTIONS, RETRY_BUFFER_BYTES, target_of
from serving.client import AsyncClient, Client
from serving.errors import (
    InvalidRequest,
    Overloaded,
    PawprintError,
    Unauthenticated,
    Unavailable,
)
from tests.conftest import ROOT, ServerProcess, running_server
from tests.photos import jpeg


def test_grpc_knows_every_option_that_it_is_given() -> None:
    """One that it does not know, such as a misspelt one, it passes over."""
    text = "".join(path.read_text() for path in (ROOT / "serving").glob("*.py"))
    given = set(re.findall(r'"(grpc\.[a-z][a-z0-9_.]+)"', text))
    library = Path(cygrpc.__file__).read_bytes()
    assert given and not [name for name in given if name.encode() not in library]


class Scripted(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answers after `delay_s`, or with `code`; counts what it is asked."""

    def __init__(self, version: int, delay_s: float = 0.0, code: grpc.StatusCode | None = None):
        self.version, self.delay_s, self.code = version, delay_s, code
        self.calls = self.cancelled = 0
        self.left_s: list[float] = []  # until the deadline of each
        self.last: pb.ClassifyRequest | None = None

    async def Classify(self, request, context):  # noqa: N802 - the name of the method in the proto
        self.calls += 1
        self.left_s.append(context.time_remaining())
        self.last = request
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.code is not None:
            await context.abort(self.code, "as scripted")
        return pb.ClassifyResponse(model=request.model, version=self.version)


class Servers:
    def __init__(self, *scripts: Scripted) -> None:
        self.scripts = scripts

    async def __aenter__(self) -> str:
        """The address of all."""
        self.running, ports = [], []
        for script in self.scripts:
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
            classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(script, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            self.running.append(server)
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    async def __aexit__(self, *_) -> None:
        for server in self.running:
            await server.stop(0)


async def until_connected(client: AsyncClient | Client, scripts: list[Scripted]) -> None:
    """Connections are made in the background: ask until each server was reached."""
    while not all(script.calls for script in scripts):
        await version_by(client)
    for script in scripts:
        script.calls = script.cancelled = 0


async def version_by(client: AsyncClient | Client) -> int:
    """The version that answers a call."""
    if isinstance(client, AsyncClient):
        return (await client.classify([b"x"], model="m")).version
    return (await asyncio.to_thread(client.classify, [b"x"], model="m")).version


async def closed(client: AsyncClient | Client) -> None:
    if isinstance(client, AsyncClient):
        await client.close()
    else:
        client.close()


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_call_asks_for_what_its_caller_says(kind: type) -> None:
    script, options = Scripted(1), {"version": 7, "top_k": 3, "routing_key": "user-1"}
    async with Servers(script) as address:
        client = kind(address)
        if isinstance(client, AsyncClient):
            await client.classify([b"x", b"y"], model="m", low_priority=True, **options)
        else:
            await asyncio.to_thread(
                client.classify, [b"x", b"y"], model="m", low_priority=True, **options
            )
        await closed(client)
    assert script.last == pb.ClassifyRequest(
        **{"model": "m", "version": "7", "images": [b"x", b"y"], "top_k": 3},
        **{"priority": pb.PRIORITY_LOW, "routing_key": "user-1"},
    )


async def test_calls_go_round_all_servers() -> None:
    scripts = [Scripted(1), Scripted(2), Scripted(3)]
    async with Servers(*scripts) as address, AsyncClient(address) as client:
        await until_connected(client, scripts)
        answers = [(await client.classify([b"x"], model="m")).version for _ in range(30)]
    assert collections.Counter(answers) == {1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_call_that_one_server_refuses_is_answered_by_another(code) -> None:
    scripts = [Scripted(1), Scripted(2)]
    async with Servers(*scripts) as address, AsyncClient(address) as client:
        await until_connected(client, scripts)
        scripts[0].code = code
        photo = b"\0" * 2_000_000  # gRPC by itself would retry nothing that is this large
        answers = [(await client.classify([photo], model="m")).version for _ in range(10)]
    assert answers == [2] * 10 and scripts[0].calls > 0
    assert len(photo) < RETRY_BUFFER_BYTES


@pytest.mark.parametrize(
    "code, error",
    [(grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded), (grpc.StatusCode.UNAVAILABLE, Unavailable)],
)
async def test_only_what_a_retry_can_save_is_tried_again(code, error) -> None:
    script = Scripted(1, code=code)
    async with Servers(script) as address, AsyncClient(address) as client:
        with pytest.raises(error, match="as scripted"):
            await client.classify([b"x"], model="m")
    assert script.calls == (5 if code is grpc.StatusCode.UNAVAILABLE else 1)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_slow_server_is_hedged_by_a_fast_one(kind: type) -> None:
    scripts = [Scripted(1), Scripted(2)]
    async with Servers(*scripts) as address:
        client = kind(address, hedge_after_s=0.1, timeout_s=8)
        await until_connected(client, scripts)
        scripts[0].delay_s = 20.0
        start = time.monotonic()
        assert [await version_by(client) for _ in range(6)] == [2] * 6
        assert time.monotonic() - start < 5
        while scripts[0].cancelled < scripts[0].calls:  # the loser is not left running
            await asyncio.sleep(0.01)
        assert scripts[0].calls >= 3
        assert max(scripts[1].left_s) < 8.05  # the second attempt has what is left of the time
        await closed(client)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_who_answers_in_time_is_not_hedged(kind: type) -> None:
    scripts = [Scripted(1), Scripted(2)]
    async with Servers(*scripts) as address:
        client = kind(address, hedge_after_s=20.0)
        await until_connected(client, scripts)
        for _ in range(4):
            await version_by(client)
        assert sum(script.calls for script in scripts) == 4
        await closed(client)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE]
)
async def test_who_fails_at_once_is_not_the_faster_one(kind: type, code: grpc.StatusCode) -> None:
    """A version that only one server has yet, say: its answer counts."""
    scripts = [Scripted(1), Scripted(2)]
    async with Servers(*scripts) as address:
        client = kind(address, hedge_after_s=0.1)
        await until_connected(client, scripts)
        scripts[0].delay_s, scripts[1].code = 0.5, code
        answers = []
        for _ in range(8):  # half begin with the one that fails: nothing is left to hedge
            with suppress(PawprintError):
                answers.append(await version_by(client))
        assert answers.count(1) >= 3
        await closed(client)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    "code, error",
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
    ],
)
async def test_a_fault_of_the_callers_own_waits_for_no_other_server(kind, code, error) -> None:
    scripts = [Scripted(1), Scripted(2)]
    async with Servers(*scripts) as address:
        client = kind(address, hedge_after_s=0.1)
        await until_connected(client, scripts)
        scripts[0].delay_s, scripts[1].code = 20.0, code
        start = time.monotonic()
        for _ in range(2):  # one of them begins with the slow one
            with pytest.raises(error, match="as scripted"):
                await version_by(client)
        assert time.monotonic() - start < 10
        await closed(client)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_what_is_no_time_to_hedge_after_is_refused(kind: type) -> None:
    for wrong in (-1, math.nan):
        with pytest.raises(InvalidRequest, match=f"hedge_after_s must be 0 .* got {wrong}"):
            kind("localhost:1", hedge_after_s=wrong)


async def test_a_hedged_call_that_fails_everywhere_fails_once() -> None:
    scripts = [
        Scripted(1, 0.3, grpc.StatusCode.INTERNAL),
        Scripted(2, 0.3, grpc.StatusCode.INTERNAL),
    ]
    async with Servers(*scripts) as address, AsyncClient(address, hedge_after_s=0.1) as client:
        with pytest.raises(Exception, match="as scripted"):
            await client.classify([b"x"], model="m")
    assert sum(script.calls for script in scripts) <= 2


async def test_a_server_that_is_still_loading_gets_no_calls(models: Path) -> None:
    from serving.server import Server
    from serving.settings import ServerSettings

    loading = Server(ServerSettings(models=str(models), port=0, device="cpu"))
    port = await loading.open()
    try:
        async with running_server(models) as ready:
            address = f"{ready.address},127.0.0.1:{port}"
            # A call that it refused would be answered by the other at the next attempt.
            options = [*CHANNEL_OPTIONS, ("grpc.enable_retries", 0)]
            async with grpc.aio.insecure_channel(target_of(address), options) as channel:
                stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
                request = pb.ClassifyRequest(model="pets", images=[jpeg()])
                for _ in range(20):
                    assert (await stub.Classify(request)).results
    finally:
        await loading.close()


def test_killing_a_server_fails_no_call(models: Path, start: Callable[..., ServerProcess]) -> None:
    servers = [start(models), start(models)]
    with Client(",".join(server.address for server in servers)) as client:
        for count in range(200):
            if count == 50:
                servers[0].process.send_signal(signal.SIGKILL)
            assert client.classify([jpeg()], model="pets").results[0].labels


@pytest.mark.parametrize(
    "address, target",
    [
        ("localhost:50051", "localhost:50051"),
        ("pets.example.com", "pets.example.com"),  # gRPC takes port 443
        ("dns:///pawprint-headless:50051", "dns:///pawprint-headless:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_addresses(address: str, target: str) -> None:
    assert target_of(address) == target


@pytest.mark.parametrize(
    "wrong", ["a:1,b:2", "10.0.0.1,10.0.0.2:1", "10.0.0.1:1,[::1]:1", "10.0.0.1:1,10.0.0.2:70000"]
)
def test_wrong_addresses_say_what_is_right(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="several servers are given as|all IPv4 or all IPv6"):
        target_of(wrong)


@pytest.mark.parametrize("address", ["::1:50051", "fd00::2:5005"])
def test_an_ipv6_address_without_brackets_is_said(address: str) -> None:
    with pytest.raises(InvalidRequest, match=r"stands in brackets, \[(::1|fd00::2)\]:5005"):
        target_of(address)


@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000])
@pytest.mark.parametrize("address", ["localhost:{}", "10.0.0.1:1,10.0.0.2:{}"])
def test_a_port_that_there_cannot_be_is_said(address: str, port: str) -> None:
    with pytest.raises(InvalidRequest, match="no port has the number|several servers are given"):
        target_of(address.format(port))


def test_the_service_config_is_the_one_of_our_service() -> None:
    from serving.channel import SERVICE as configured
    from serving.server import SERVICE as served

    assert configured == served and "grpc.service_config" in dict(CHANNEL_OPTIONS)

"""The configurations of deploy/proxies, in the proxies themselves, before two real servers."""

import asyncio
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.client import AsyncClient, Client, Tls
from serving.errors import InvalidRequest, Overloaded
from tests.certificates import Authority
from tests.conftest import ROOT, ServerProcess
from tests.photos import encode, jpeg, noise, slow_png
from tests.ports import free_ports
from tests.waiting import until

# Each with its configuration, in a folder of its own.
COMMANDS = {
    "nginx": ("nginx.conf", "-p . -c nginx.conf -e stderr -g 'daemon off; pid nginx.pid;'"),
    "haproxy": ("haproxy.cfg", "-db -f haproxy.cfg"),
    "caddy": ("Caddyfile", "run --config Caddyfile --adapter caddyfile"),
    "envoy": ("envoy.yaml", "-c envoy.yaml --use-dynamic-base-id --concurrency 1"),
}
each = pytest.mark.parametrize("name", COMMANDS)
_slow = ("haproxy", "caddy")
nginx_alone = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _slow else n for n in COMMANDS]
)
CLIENTS = 5  # so many that some watch the health of the server that leaves


@dataclass(frozen=True, kw_only=True)
class Proxied:
    """Two servers behind a proxy."""

    address: str
    tls_address: str
    ca: str
    servers: list[ServerProcess]
    restart: Callable[[int], None]  # the server of that index, which has ended


Begin = Callable[..., Proxied]


@pytest.fixture
def proxied(models: Path, start, tmp_path: Path) -> Iterator[Begin]:
    """Of a proxy's name; flags: of both servers; changed: in its configuration."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *flags: str, changed: tuple[str, str] = ("", "")) -> Proxied:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip(f"no {name} here")
        file, options = COMMANDS[name]
        plain, tls, *ports = free_ports(6)
        authority = Authority(tmp_path)
        pair = authority.sign("server")
        pair.cert.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())  # for HAProxy
        here = dict(zip(("50051", "50052", "9464", "9465"), map(str, ports), strict=True))
        here |= {"8080": str(plain), "8443": str(tls)}
        text = (ROOT / "deploy/proxies" / file).read_text().replace(*changed)
        text = re.sub(r"\b(50051|50052|946[45]|8080|8443)\b", lambda port: here[port[0]], text)
        (tmp_path / file).write_text(text)

        def server(index: int) -> ServerProcess:
            listening = ("--port", here[f"5005{index + 1}"])
            watched = ("--metrics-port", here[f"946{index + 4}"])
            return start(models, "--decode-threads", "1", *listening, *watched, *flags)

        servers = [server(0), server(1)]
        command = [program, *shlex.split(options)]
        with (tmp_path / "proxy.log").open("wb") as log:
            processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        until(lambda: processes[0].poll() is not None or answers(f"127.0.0.1:{plain}"))
        assert processes[0].poll() is None, (tmp_path / "proxy.log").read_text()

        def restart(index: int) -> None:
            servers[index] = server(index)

        return Proxied(
            address=f"127.0.0.1:{plain}",
            tls_address=f"127.0.0.1:{tls}",
            ca=str(authority.ca),
            servers=servers,
            restart=restart,
        )

    yield begin
    for process in processes:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    """Whether a call comes through, for which no token is wanted."""
    with grpc.insecure_channel(address) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return True


def large() -> bytes:
    """A photo of 18 MB, near the limit: noise, which can't be compressed."""
    return encode(noise(2450), "PNG")


async def streamed(client: AsyncClient | Client, photos: Iterable[bytes]) -> int:
    """How many are answered, of which none may be refused."""
    if isinstance(client, AsyncClient):
        found = [one async for one in client.stream(photos, model="pets")]
    else:
        found = await asyncio.to_thread(lambda: list(client.stream(photos, model="pets")))
    assert not [one.result.error for one in found if one.result.error]
    return len(found)


@each
async def test_photos_and_streams_pass(proxied: Begin, name: str) -> None:
    proxy, photo = await asyncio.to_thread(proxied, name), large()
    for address, tls in ((proxy.address, None), (proxy.tls_address, Tls(ca=proxy.ca))):
        with Client(address, tls=tls) as client:
            call = partial(client.classify, [photo] * 3, model="pets")
            assert len((await asyncio.to_thread(call)).results) == 3
            # Together more than the 64 MiB that a message may have.
            assert await streamed(client, [photo] * 4 + [jpeg()] * 60) == 64
        async with AsyncClient(address, tls=tls, max_batch=4) as client:
            assert await streamed(client, [jpeg()] * 60) == 60


@each
async def test_a_refusal_says_when_to_try_again(proxied: Begin, name: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"calm").hexdigest()
    (tokens := tmp_path / "tokens.toml").write_text(
        f'[[tokens]]\nname = "slow"\nsha256 = "{digest}"\nphotos_per_s = 0.01\nburst = 1\n'
    )
    proxy = await asyncio.to_thread(proxied, name, "--tokens", str(tokens), "--access-log", "on")
    async with AsyncClient(proxy.address, token="calm") as client:
        with pytest.raises(Overloaded) as refused:
            for _ in range(20):
                await client.classify([jpeg()] * 2, model="pets")
    assert refused.value.retry_after_s and refused.value.retry_after_s > 50
    async with grpc.aio.insecure_channel(proxy.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        mine = (("x-request-id", "mine"), ("authorization", "Bearer calm"))
        call = stub.ListModels(pb.ListModelsRequest(), metadata=mine)
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


@nginx_alone
async def test_a_server_that_drains_or_dies_costs_no_call(proxied: Begin, name: str) -> None:
    proxy = await asyncio.to_thread(proxied, name)
    ended, answered = threading.Event(), [0] * (2 * CLIENTS)

    def photos(index: int) -> Iterator[bytes]:
        while not ended.is_set():
            answered[index] += 1
            yield jpeg()

    def calls(index: int) -> None:
        with Client(proxy.address) as client:
            for photo in photos(index):
                client.classify([photo], model="pets")

    def stream(index: int) -> None:
        with Client(proxy.address) as client:
            for one in client.stream(photos(index), model="pets", in_flight=2):
                assert not one.result.error

    def all_go_on() -> None:
        before = list(answered)
        until(
            lambda: (
                all(now > then + 2 for now, then in zip(answered, before, strict=True))
                or any(one.done() for one in working)
            )
        )
        for one in working:
            if one.done():
                one.result()

    def leave() -> None:
        all_go_on()
        first, second = proxy.servers
        with Client(first.address, timeout_s=90) as direct:
            long = pool.submit(direct.classify, [slow_png()] * 24, model="pets")
            until(lambda: not long.done())
            all_go_on()
            first.process.send_signal(signal.SIGTERM)
            for _ in range(3):
                all_go_on()
            assert len(long.result().results) == 24
        first.process.wait(30)
        proxy.restart(0)
        all_go_on()
        second.process.kill()
        all_go_on()

    with ThreadPoolExecutor(2 * CLIENTS + 1) as pool:
        working = [pool.submit(calls, index) for index in range(CLIENTS)]
        working += [pool.submit(stream, CLIENTS + index) for index in range(CLIENTS)]
        try:
            await asyncio.to_thread(leave)
        finally:
            ended.set()
        for one in working:
            one.result()


async def test_what_nginx_does_not_let_pass_is_said(proxied: Begin) -> None:
    changed = ("client_max_body_size  0;", "client_max_body_size  1m;")  # nginx's own default
    proxy = await asyncio.to_thread(proxied, "nginx", changed=changed)
    async with AsyncClient(proxy.address) as client:
        with pytest.raises(InvalidRequest, match="HTTP 413.*client_max_body_size"):
            await client.classify([bytes(2_000_000)], model="pets")
        with pytest.raises(InvalidRequest, match="HTTP 413.*client_max_body_size"):
            await streamed(client, [bytes(2_000_000)] * 10)

"""Callers that read slowly, vanish or do nothing, while others call.

    python -m tests.faults.connections [--idle 500]

Each is set beside the same calls in quiet. Slow: a stream is written to and never read, its photos
large. Vanished: clients in the middle of a stream are stopped (SIGSTOP), and then killed. Idle:
open connections that ask for nothing. In the end descriptors are what they were.
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from tests.conftest import ROOT, ServerProcess
from tests.faults.process import descriptors, resident_mib
from tests.faults.script import conclude, stopped_clean, tiny_server
from tests.photos import jpeg
from tests.serving.test_service import check, request

CALLERS, CALLS = 4, 400
ALONE = [("grpc.use_local_subchannel_pool", 1)]
WITHIN_S = 30.0
MIB_A_CONNECTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Measured:
    p50_ms: float
    p99_ms: float
    mib: float
    descriptors: int


async def measure(server: ServerProcess, words: str) -> Measured:
    """Latency of a few callers' calls, whose every answer must be right, and what is in use."""
    photo, taken = jpeg(), []

    async def caller() -> None:
        async with grpc.aio.insecure_channel(server.address, ALONE) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            for _ in range(CALLS // CALLERS):
                begin = time.monotonic()
                answer = await stub.Classify(request(photo), timeout=WITHIN_S)
                taken.append(time.monotonic() - begin)
                check(answer.results[0], photo)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    p50_ms, p99_ms = 1e3 * np.quantile(taken, (0.5, 0.99))
    pid = server.process.pid
    found = Measured(
        p50_ms=p50_ms, p99_ms=p99_ms, mib=resident_mib(pid), descriptors=descriptors(pid)
    )
    print(
        f"{words:40s} p50 {p50_ms:6.1f} ms, p99 {p99_ms:6.1f} ms, {found.mib:6.1f} MiB, "
        f"{found.descriptors} descriptors",
        flush=True,
    )
    return found


@asynccontextmanager
async def never_read(
    address: str, asked: pb.ClassifyRequest, patience_s: float = 3.0
) -> AsyncIterator[int]:
    """A stream whose answers nobody fetches, with a window of 64 KiB; yields how many requests were
    on their way when the server let no more come for so long."""
    options = [*ALONE, ("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        call = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
        message = pb.ClassifyStreamRequest(request=asked)
        sent = 0
        while sent < 100_000:
            message.request_id = sent
            try:
                await asyncio.wait_for(asyncio.shield(call.write(message)), patience_s)
            except TimeoutError:
                break
            sent += 1
        yield sent
        call.cancel()


@asynccontextmanager
async def idle(address: str, count: int) -> AsyncIterator[None]:
    """Connections that were really made, and then ask for nothing."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, ALONE))
            await asyncio.wait_for(channel.channel_ready(), WITHIN_S)
        yield


async def streaming(address: str) -> None:
    """What a client does that is to vanish: a stream without end; says so when it is answered."""
    async with grpc.aio.insecure_channel(address, ALONE) as channel:
        call = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()

        async def write() -> None:
            for number in range(10**9):
                message = pb.ClassifyStreamRequest(request_id=number, request=request(jpeg()))
                await call.write(message)

        writing = asyncio.create_task(write())
        await call.read()
        print("answered", flush=True)
        while await call.read() is not grpc.aio.EOF:
            pass
        writing.cancel()


def start_streaming(address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.connections", "--stream-to", address]
    client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline() == "answered\n"
    return client


async def settled(server: ServerProcess, wanted: int) -> bool:
    """Whether the descriptors come back to so many within the time."""
    deadline = time.monotonic() + WITHIN_S
    while descriptors(server.process.pid) > wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return descriptors(server.process.pid) <= wanted


async def connections(folder: Path, count: int) -> bool:
    findings: list[bool] = []
    with tiny_server(folder) as server:
        await measure(server, "first calls")
        quiet = await measure(server, "in quiet")
        open_then = quiet.descriptors

        async with never_read(server.address, request(*[b"no photo"] * 60)) as taken:
            slow = await measure(server, f"a stream never read, {taken} requests sent")
        findings += [taken < 100_000, slow.mib < quiet.mib + 32]
        findings.append(await settled(server, open_then))

        clients = [await asyncio.to_thread(start_streaming, server.address) for _ in range(2)]
        await measure(server, "2 streams as fast as they are answered")
        for client in clients:
            client.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1)
        stopped = await measure(server, "the same 2 clients stopped (SIGSTOP)")
        for client in clients:
            client.kill()
            client.communicate()
        findings += [stopped.mib < quiet.mib + 32, await settled(server, open_then)]
        await measure(server, "and killed")

        before = await measure(server, "before the idle connections")
        async with idle(server.address, count):
            during = await measure(server, f"{count} idle connections")
        findings += [
            during.descriptors >= count,
            during.mib - before.mib < count * MIB_A_CONNECTION,
            await settled(server, open_then),
        ]
        await measure(server, "and closed")
        print(f"findings: {findings}")
        return stopped_clean(server) and all(findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--stream-to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream_to:
        asyncio.run(streaming(options.stream_to))
    else:
        conclude(lambda folder: connections(folder, options.idle))


if __name__ == "__main__":
    main()

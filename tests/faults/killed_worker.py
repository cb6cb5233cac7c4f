"""kill -9 of a worker under load: only its own calls fail, and the client's retries hide those.

    python -m tests.faults.killed_worker [--kills 3]

Two kinds of callers at once: gRPC without retries, each on a connection of its own, which shows
what the kill costs; and our client, which must not notice it.
"""

import argparse
import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from protos.pawprint.v1 import classifier_pb2_grpc
from serving.client import AsyncClient
from serving.errors import PawprintError
from tests.faults.script import conclude, stopped_clean, tiny_server
from tests.photos import jpeg
from tests.serving.test_service import check, request
from tests.serving.test_workers import listening, workers_of

BARE, OURS = 8, 8
QUIET_S, FAILS_WITHIN_S, BACK_WITHIN_S = 2.0, 5.0, 60.0
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass(kw_only=True)
class Tally:
    answered: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)  # when, and as what


async def bare(address: str, tally: Tally, photo: bytes) -> None:
    """After a failure it connects anew, so that a failed call is one that the kill met on its way:
    on the old connection, or on a new one that the dying process had not let go of yet."""
    while True:
        async with grpc.aio.insecure_channel(address, ALONE) as channel:
            await asyncio.wait_for(channel.channel_ready(), BACK_WITHIN_S)
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            try:
                while True:
                    check((await stub.Classify(request(photo), timeout=30)).results[0], photo)
                    tally.answered += 1
            except grpc.aio.AioRpcError as error:
                tally.failed.append((time.monotonic(), error.code().name))


async def ours(address: str, tally: Tally, photo: bytes) -> None:
    async with AsyncClient(address) as client:
        while True:
            try:
                await client.classify([photo], model="pets")
                tally.answered += 1
            except PawprintError as error:
                tally.failed.append((time.monotonic(), repr(error)))


async def killed_worker(folder: Path, kills: int) -> bool:
    with tiny_server(folder, "--workers", "2", "--control", "none") as server:
        port = int(server.address.rpartition(":")[2])
        plain, client, photo = Tally(), Tally(), jpeg()
        callers = [asyncio.create_task(bare(server.address, plain, photo)) for _ in range(BARE)]
        callers += [asyncio.create_task(ours(server.address, client, photo)) for _ in range(OURS)]
        sound = True
        for _ in range(kills):
            await asyncio.sleep(QUIET_S)
            before, killed = len(plain.failed), min(workers_of(server))
            begin = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            while sum(listening(pid, port) for pid in workers_of(server) - {killed}) < 2:
                assert time.monotonic() < begin + BACK_WITHIN_S, "no worker took its place"
                await asyncio.sleep(0.02)
            back_s = time.monotonic() - begin
            await asyncio.sleep(QUIET_S)
            codes = Counter(code for _, code in plain.failed[before:])
            last_s = max((when - begin for when, _ in plain.failed[before:]), default=0.0)
            print(
                f"killed {killed}: another one listens after {back_s:.2f} s; without retries "
                f"{codes.total()} calls of {BARE} callers failed {dict(codes)}, the last after "
                f"{last_s:.2f} s",
                flush=True,
            )
            sound &= codes.total() <= 2 * BARE and codes.keys() <= {"UNAVAILABLE"}
            sound &= last_s < FAILS_WITHIN_S
        for caller in callers:
            caller.cancel()
        for result in await asyncio.gather(*callers, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                print(f"a caller ended: {result!r}")
                sound = False
        print(f"without retries: {plain.answered} answered, {len(plain.failed)} failed")
        print(
            f"our client: {client.answered} answered, {len(client.failed)} failed "
            f"{client.failed[:3]}"
        )
        return sound and not client.failed and client.answered > 0 and stopped_clean(server)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    conclude(lambda folder: killed_worker(folder, options.kills))


if __name__ == "__main__":
    main()

"""Ten times what a server holds: what it still answers, how it refuses, and whether it recovers.

    .venv/bin/python benchmarks/overload.py MODELS NAME PHOTOS

First the peak, by callers that each wait for their answers. Then ten times as many callers as the
queue has places, each with one photo after another; those refused come back when they were told to.
Last calls at ten times the rate of the peak, whether or not they are answered, each refused call
tried once only. Callers and server share the cores, so the callers' own part of them is printed:
what they take, the server lacks. Peak, memory and latency are measured once more afterwards.
Callers are gRPC alone, each call a message; `--together 8`: our client, whose calls share messages.
"""

import argparse
import asyncio
import os
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import uvloop
from limit import CORES, parser_of, read_photos
from started import cpu_s, free_port, started

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.client import AsyncClient
from serving.client_messages import retry_after_s
from serving.commandline import aligned
from serving.errors import Overloaded

METHOD = "/pawprint.v1.ClassifierService/Classify"
PEAK_CALLERS = 32
QUEUE = 256  # photos, max_queue of serve
CHANNELS = 4
TICK_S, AT_A_TICK = 0.005, 50
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

# The number of a call -> its status, and in how many seconds to come back.
Ask = Callable[[int], Awaitable[tuple[grpc.StatusCode, float]]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running server, and what reads its own figures."""

    address: str
    metrics_port: int
    pid: int

    def metrics(self) -> tuple[float, float]:
        """Memory in MiB, and photos answered so far."""
        memory, answered = 0.0, 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    memory = float(line.split()[1]) / 2**20
                elif line.startswith("pawprint_photos_total{"):
                    answered += float(line.split()[-1])
        return memory, answered


@contextmanager
def server(models: Path, flags: list[str]) -> Iterator[Target]:
    metrics_port = free_port()
    with started(models, "--metrics-port", str(metrics_port), *flags) as ours:
        yield Target(address=ours.address, metrics_port=metrics_port, pid=ours.pid)


@dataclass(kw_only=True)
class Tally:
    """Seconds from sending to the answer, by status; when each OK came."""

    sent: int = 0
    seconds: dict[grpc.StatusCode, list[float]] = field(default_factory=dict)
    answered_at: list[float] = field(default_factory=list)

    def count(self, code: grpc.StatusCode, begin: float) -> None:
        now = time.perf_counter()
        self.seconds.setdefault(code, []).append(now - begin)
        if code is grpc.StatusCode.OK:
            self.answered_at.append(now)


def asking_by_grpc(channels: list[grpc.aio.Channel], name: str, photos: list[bytes]) -> Ask:
    requests = [pb.ClassifyRequest(model=name, images=[photo]) for photo in photos]
    messages = [request.SerializeToString() for request in requests]
    methods = [channel.unary_unary(METHOD) for channel in channels]

    async def ask(number: int) -> tuple[grpc.StatusCode, float]:
        try:
            await methods[number % len(methods)](messages[number % len(messages)])
        except grpc.aio.AioRpcError as error:
            return error.code(), retry_after_s(error) or 1.0
        return grpc.StatusCode.OK, 0.0

    return ask


def asking_by_client(clients: Sequence[AsyncClient], name: str, photos: list[bytes]) -> Ask:
    async def ask(number: int) -> tuple[grpc.StatusCode, float]:
        try:
            photo = photos[number % len(photos)]
            await clients[number % len(clients)].classify([photo], model=name)
        except Overloaded as error:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, error.retry_after_s or 1.0
        return grpc.StatusCode.OK, 0.0

    return ask


async def closed_loop(ask: Ask, seconds: float) -> Tally:
    """Callers that wait for each answer: what the server holds."""
    tally = Tally()
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while (begin := time.perf_counter()) < end:
            code, _ = await ask(number)
            tally.count(code, begin)
            number += PEAK_CALLERS

    await asyncio.gather(*(caller(first) for first in range(PEAK_CALLERS)))
    return tally


async def told_loop(ask: Ask, callers: int, seconds: float) -> Tally:
    """Callers that wait for each answer, and after a refusal for as long as they were told.

    They come one by one, all within a third of the time.
    """
    tally = Tally()
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        await asyncio.sleep(seconds / 3 * number / callers)
        while (begin := time.perf_counter()) < end:
            tally.sent += 1
            code, again_s = await ask(number)
            tally.count(code, begin)
            if again_s:
                await asyncio.sleep(min(end - time.perf_counter(), again_s))

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return tally


async def open_loop(ask: Ask, rate: float, seconds: float) -> Tally:
    """Calls at a rate, come what may; those that are still under way at the end are awaited.

    Where it can't send so many itself, it sends what it can beside reading the answers.
    """
    tally, under_way = Tally(), set()

    async def call(number: int) -> None:
        begin = time.perf_counter()
        code, _ = await ask(number)
        tally.count(code, begin)

    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(min(AT_A_TICK, int(passed * rate) - tally.sent)):
            task = asyncio.ensure_future(call(tally.sent))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            tally.sent += 1
        await asyncio.sleep(TICK_S)
    await asyncio.gather(*under_way)
    return tally


async def watched(target: Target, samples: list[tuple[float, float, float]]) -> None:
    """Adds time, MiB and photos answered so far, as the server itself has them, until cancelled."""
    while True:
        samples.append((time.perf_counter(), *await asyncio.to_thread(target.metrics)))
        await asyncio.sleep(0.25)


def rate_of(answered_at: list[float], begin: float, end: float) -> float:
    return sum(begin <= when < end for when in answered_at) / (end - begin)


def quantiles_ms(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return " / ".join(f"{1e3 * value:.0f}" for value in np.quantile(seconds, (0.5, 0.99, 1)))


async def measure(target: Target, options: argparse.Namespace, photos: list[bytes]) -> None:
    factor, seconds, together = options.factor, options.seconds, options.together
    channels: list[grpc.aio.Channel | AsyncClient]
    if together:
        channels = [AsyncClient(target.address, max_batch=together) for _ in range(CHANNELS)]
        ask = asking_by_client(channels, options.name, photos)
    else:
        channels = [grpc.aio.insecure_channel(target.address, OPTIONS) for _ in range(CHANNELS)]
        ask = asking_by_grpc(channels, options.name, photos)
    rows: list[tuple[object, ...]] = []

    async def peak(words: str) -> float:
        tally = await closed_loop(ask, seconds)
        end = max(tally.answered_at)
        found = rate_of(tally.answered_at, end - seconds, end)
        taken = quantiles_ms(tally.seconds[grpc.StatusCode.OK])
        rows.append((f"{words}, {PEAK_CALLERS} callers, calls/s", f"{found:.1f}"))
        rows.append((f"  latency p50 / p99 / longest, ms, {target.metrics()[0]:.0f} MiB", taken))
        return found

    async def overloaded(words: str, calling: Awaitable[Tally]) -> None:
        samples: list[tuple[float, float, float]] = []
        watching = asyncio.create_task(watched(target, samples))
        begin, ours, theirs = time.perf_counter(), time.process_time(), cpu_s(target.pid)
        tally = await calling
        passed = time.perf_counter() - begin
        ours, theirs = time.process_time() - ours, cpu_s(target.pid) - theirs
        watching.cancel()
        first, *_, last = (one for one in samples if begin + 1 <= one[0] <= begin + seconds)
        accepted = (last[2] - first[2]) / (last[0] - first[0])
        most = max(mib for _, mib, _ in samples)
        refused = tally.seconds.get(grpc.StatusCode.RESOURCE_EXHAUSTED, [])
        others = {code.name: len(all_) for code, all_ in tally.seconds.items()}
        rows.extend(
            [
                (words, f"{tally.sent / seconds:.0f} calls/s"),
                ("  answered, as the server counts, calls/s", f"{accepted:.1f}"),
                ("  share of the peak (at least 0.9 wanted)", f"{accepted / before:.2f}"),
                ("  refusals p50 / p99 / longest, ms (50 wanted)", quantiles_ms(refused)),
                ("  outcomes", others),
                ("  most memory, MiB", f"{most:.0f}"),
                (
                    f"  cores used of {CORES}: by the callers, by the server",
                    f"{ours / passed:.2f}, {theirs / passed:.2f}",
                ),
            ]
        )

    await closed_loop(ask, 2)
    before = await peak("peak")
    callers = round(factor * QUEUE)
    told = told_loop(ask, callers, seconds)
    await overloaded(f"{callers} callers who come back as told", told)
    await peak("afterwards")
    rate = factor * before
    await overloaded(f"{rate:.0f} calls/s", open_loop(ask, rate, seconds))
    await peak("afterwards")
    print(aligned([("", ""), *rows]))
    for channel in channels:
        await channel.close()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--factor", type=float, default=10, help="times the peak (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each part (%(default)s)")
    parser.add_argument("--flags", default="", help="more flags for serve, in one word")
    parser.add_argument("--together", type=int, metavar="PHOTOS", help="max_batch of our client")
    options = parser.parse_args()
    photos = read_photos(options.photos, 64)
    size = np.mean([len(photo) for photo in photos])
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}; photos of {size / 1e3:.0f} kB")
    with server(options.models, options.flags.split()) as target:
        uvloop.run(measure(target, options, photos))


if __name__ == "__main__":
    main()

"""Three servers in network namespaces behind our client: kill one, cut one off, add one, roll all.

    sudo unshare --net --mount .venv/bin/python -m tests.cluster.failover

Prints a table of what callers saw in each phase, then photos per second with one, two and three
servers, where cgroup v1 can hold each to a share of a core. Status 1 if a call failed or took too
long.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.client import AsyncClient
from serving.commandline import aligned
from serving.errors import PawprintError
from serving.probe import serving_status
from tests.cluster.hosts import PORT, Host, can_limit, make_switch
from tests.photos import drawing, encode
from tests.tiny import build_version

CALLERS = 8
TIMEOUT_S = 20.0
HEDGE_AFTER_S = 0.5
SLOWEST_S = 6.0  # twice what it takes to give up a server that is cut off
CORES = 0.3  # of each server; three of them and the callers fit on two cores
PHASE_S = 6.0
THROUGHPUT_S = 8.0
READY_WITHIN_S = 120.0


@dataclass(kw_only=True)
class Seen:
    latencies_s: list[float] = field(default_factory=list)
    answered_by: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def row(self, phase: str) -> tuple[object, ...]:
        p50, p99 = np.percentile(self.latencies_s, [50, 99]) * 1e3
        by = " ".join(f"{host}:{self.answered_by[host]}" for host in sorted(self.answered_by))
        calls = len(self.latencies_s) + len(self.failures)
        worst = f"{1e3 * max(self.latencies_s):.0f}"
        return (phase, calls, len(self.failures), f"{p50:.0f}", f"{p99:.0f}", worst, by)


HEADER = ("PHASE", "CALLS", "FAILED", "P50 MS", "P99 MS", "MAX MS", "ANSWERED BY SERVER")


def photo(side: int) -> bytes:
    return encode(drawing(side, side), "PNG", compress_level=1)


@contextlib.asynccontextmanager
async def load(client: AsyncClient, image: bytes) -> AsyncIterator[Seen]:
    """Callers in a closed loop for as long as the block lasts."""
    seen, stop = Seen(), asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            start = time.monotonic()
            try:
                answer = await client.classify([image], model="pets")
            except PawprintError as error:
                seen.failures.append(repr(error))
            else:
                seen.latencies_s.append(time.monotonic() - start)
                seen.answered_by[answer.version] += 1

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*callers)


async def ready(*hosts: Host) -> None:
    for host in hosts:
        deadline = time.monotonic() + READY_WITHIN_S
        while await asyncio.to_thread(serving_status, f"{host.ip}:{PORT}", "", 1.0) != "SERVING":
            if time.monotonic() > deadline:
                raise AssertionError(f"{host.name} does not become ready")
            await asyncio.sleep(0.1)


def address(hosts: Sequence[Host]) -> str:
    return ",".join(f"{host.ip}:{PORT}" for host in hosts)


async def failover(hosts: list[Host]) -> list[tuple[str, Seen]]:
    first, second, third = hosts

    async def steady() -> None:
        await asyncio.sleep(PHASE_S)

    async def kill_one() -> None:
        await asyncio.sleep(1)
        first.kill()
        await asyncio.sleep(PHASE_S)

    async def start_it_again() -> None:
        first.start()
        await ready(first)
        await asyncio.sleep(PHASE_S)

    async def cut_one_off() -> None:
        await asyncio.sleep(1)
        second.cut_off()
        await asyncio.sleep(3 * PHASE_S)  # until keepalive has given it up, and after

    async def mend_it() -> None:
        second.mend()
        await asyncio.sleep(2 * PHASE_S)

    async def add_one() -> None:
        third.start()
        await ready(third)
        await asyncio.sleep(PHASE_S)

    async def roll_all() -> None:
        for host in hosts:
            status = await asyncio.to_thread(host.terminate)
            assert status == 0, f"{host.name} ended with status {status}"
            host.start()
            await ready(host)
            await asyncio.sleep(3)  # a rollout goes on once the new one is seen

    phases: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("two servers", steady),
        ("1 is killed", kill_one),
        ("1 comes back", start_it_again),
        ("2 is cut off", cut_one_off),
        ("2 is back on the network", mend_it),
        ("3 is added", add_one),
        ("each is restarted (SIGTERM)", roll_all),
    ]
    first.start()
    second.start()
    await ready(first, second)
    table = []
    image = photo(256)
    client = AsyncClient(address(hosts), timeout_s=TIMEOUT_S, hedge_after_s=HEDGE_AFTER_S)
    async with client:
        for name, act in phases:
            async with load(client, image) as seen:
                await act()
            print(aligned([HEADER, seen.row(name)]).splitlines()[1], flush=True)
            table.append((name, seen))
    return table


async def throughput(hosts: list[Host]) -> list[tuple[int, float]]:
    """Photos per second by number of servers, each with CORES of a core."""
    for host in hosts:
        host.kill()
        host.start()
    await ready(*hosts)
    for host in hosts:
        host.limit()
    found = []
    image = photo(1000)  # decoding it is most of the work, and that is the server's
    for count in range(1, len(hosts) + 1):
        async with AsyncClient(address(hosts[:count]), timeout_s=TIMEOUT_S) as client:
            async with load(client, image):
                await asyncio.sleep(3)  # connected, warm
            start = time.monotonic()
            async with load(client, image) as seen:
                await asyncio.sleep(THROUGHPUT_S)
            assert not seen.failures, seen.failures[:3]
            found.append((count, len(seen.latencies_s) / (time.monotonic() - start)))
    return found


def problems(table: list[tuple[str, Seen]]) -> list[str]:
    found = [f"{name}: {failure}" for name, seen in table for failure in seen.failures[:3]]
    for name, seen in table:
        slowest = max(seen.latencies_s, default=0.0)
        if slowest > SLOWEST_S:
            found.append(f"{name}: a call took {slowest:.1f} s")
    answered = {name: seen.answered_by for name, seen in table}
    if not answered["1 comes back"][1]:
        found.append("server 1 got no calls once it was back")
    if not answered["2 is back on the network"][2]:
        found.append("server 2 got no calls once it was back on the network")
    if not answered["3 is added"][3]:
        found.append("server 3 got no calls once it was added")
    return found


async def main() -> int:
    make_switch()
    with tempfile.TemporaryDirectory() as folder:
        hosts = []
        for number in (1, 2, 3):
            models = Path(folder) / f"host{number}" / "models"
            for _ in range(number):  # so that the version tells which server answered
                build_version(models, "pets", size=224)
            hosts.append(Host(number=number, models=models, cores=CORES))
            hosts[-1].plug_in()
        try:
            table = await failover(hosts)
            print(aligned([HEADER, *(seen.row(name) for name, seen in table)]))
            rates = await throughput(hosts) if can_limit() else []
        finally:
            for host in hosts:
                host.remove()
    found = problems(table)
    if rates:
        rows = [(n, f"{rate:.1f}", f"{rate / rates[0][1]:.2f}") for n, rate in rates]
        print(aligned([("SERVERS", "PHOTOS/S", "TIMES ONE"), *rows]))
        if rates[-1][1] < 2.4 * rates[0][1]:
            times = rates[-1][1] / rates[0][1]
            found.append(f"three servers give {times:.2f} times what one gives")
    else:
        print("photos per second: not measured, for want of the cpu controller of cgroup v1")
    for problem in found:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

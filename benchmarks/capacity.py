"""What one photo costs a server: processor time and memory, for planning how many are needed.

    .venv/bin/python benchmarks/capacity.py MODELS NAME PHOTOS

Processor time per photo, not photos per second, is what is measured: it hardly depends on what else
the machine is doing. A core answers 1000 / (ms per photo) photos a second at full use.
"""

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from limit import parser_of, read_photos
from started import cpu_s, started

from serving.client import AsyncClient
from serving.commandline import aligned

CALLERS = (1, 16)
WARM_PHOTOS = 32
TARGET_PHOTOS_S = 1_000_000 / 3600
USE = 0.7  # of the processor, so that bursts find room


@dataclass(frozen=True, kw_only=True)
class Cost:
    cpu_ms: float  # of all the server's threads, per photo
    photos_s: float  # as the machine happened to be
    resident_mib: float  # at its highest


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


async def measure(
    pid: int, address: str, name: str, photos: list[bytes], callers: int, together: int
) -> Cost:
    async with AsyncClient(address, max_batch=together) as client:
        waiting = iter(photos)

        async def caller() -> None:
            for photo in waiting:
                await client.classify([photo], model=name)

        async def all_of(some: list[bytes]) -> None:
            nonlocal waiting
            waiting = iter(some)
            await asyncio.gather(*(caller() for _ in range(callers)))

        await all_of(photos[:WARM_PHOTOS])
        cpu, start = cpu_s(pid), time.perf_counter()
        await all_of(photos)
        elapsed, used = time.perf_counter() - start, cpu_s(pid) - cpu
    return Cost(
        cpu_ms=1e3 * used / len(photos),
        photos_s=len(photos) / elapsed,
        resident_mib=peak_mib(pid),
    )


def serve_and_measure(
    options: argparse.Namespace, photos: list[bytes], cores: int, callers: int
) -> Cost:
    flags = ("--cores", str(cores), "--precision", options.precision)
    with started(options.models, *flags) as server:
        where = (server.pid, server.address, options.name)
        return asyncio.run(measure(*where, photos, callers, options.together))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=400, help="photos (default: %(default)s)")
    parser.add_argument("--precision", default="auto", help="of the server (default: %(default)s)")
    parser.add_argument(
        "--together", type=int, default=1, help="the client's max_batch (default: %(default)s)"
    )
    options = parser.parse_args()
    photos = read_photos(options.photos, options.count)
    rows: list[tuple[object, ...]] = [
        ("CORES", "CALLERS", "CPU MS/PHOTO", "PHOTOS/S A CORE", "PHOTOS/S NOW", "MEMORY MIB")
    ]
    best = float("inf")
    for cores in sorted({1, len(os.sched_getaffinity(0))}):
        for callers in CALLERS:
            cost = serve_and_measure(options, photos, cores, callers)
            best = min(best, cost.cpu_ms)
            rate = f"{1e3 / cost.cpu_ms:.1f}"
            memory = f"{cost.resident_mib:.0f}"
            row = (cores, callers, f"{cost.cpu_ms:.1f}", rate, f"{cost.photos_s:.1f}", memory)
            rows.append(row)
    print(aligned(rows))
    cores = TARGET_PHOTOS_S * best / 1e3 / USE
    print(f"A million photos an hour: {cores:.1f} cores at {USE:.0%} use")


if __name__ == "__main__":
    main()

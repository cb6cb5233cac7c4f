"""The server beside the limit of the machine: photos a second and latency, by callers and client.

    .venv/bin/python benchmarks/serving.py MODELS NAME PHOTOS --triton /tmp/triton/bin/python

The limit is what plain loops reach with no server (limit.py), measured in the same run, before and
after; callers and server share the cores. Clients: ours, in a process of its own, and NVIDIA's
tritonclient (`pip install tritonclient[grpc]` in an environment of its own) with photos (BYTES) and
with pixels (UINT8). --rows 16 --clients ours is a quick look.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from limit import CORES, alone_ms, engine_of, limits, read_photos

from serving.client import AsyncClient
from serving.commandline import aligned
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess

ROOT = Path(__file__).resolve().parents[1]
WARM = 32
CLIENTS = ("ours", "triton-bytes", "triton-pixels")


@contextmanager
def server(models: Path, precision: str, flags: list[str]) -> Iterator[str]:
    """The address of a `serve` with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "serving.serve", "--models", str(models), "--port", "0"]
        command += ["--port-file", str(port_file), "--device", "cpu", "--precision", precision]
        process = subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    sys.exit("error: the server did not start; it said why above")
                time.sleep(0.05)
            yield f"127.0.0.1:{port_file.read_text().strip()}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


async def our_callers(address: str, name: str, photos: list[bytes], callers: int) -> dict:
    taken: list[float] = []
    async with AsyncClient(address) as client:

        async def all_of(some: list[bytes]) -> float:
            waiting = iter(some)

            async def caller() -> None:
                for photo in waiting:
                    begin = time.perf_counter()
                    await client.classify([photo], model=name)
                    taken.append(time.perf_counter() - begin)

            begin = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(callers)))
            return time.perf_counter() - begin

        await all_of(photos[:WARM])
        taken.clear()
        seconds = await all_of(photos)
    p50, p99 = (1e3 * float(np.quantile(taken, q)) for q in (0.5, 0.99))
    return {"photos_s": len(photos) / seconds, "p50_ms": p50, "p99_ms": p99}


def ask(command: list[str]) -> dict:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("name")
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("--count", type=int, default=480, help="photos a row")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], metavar="CALLERS")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--triton", help="Python with tritonclient[grpc]")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="flags of the server")
    parser.add_argument("--callers", type=int, help=argparse.SUPPRESS)  # we are the load
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    photos = read_photos(options.photos, options.count)
    if options.address:
        run = our_callers(options.address, options.name, photos, options.callers)
        print(json.dumps(asyncio.run(run)))
        return
    clients = [c for c in options.clients if options.triton or c == "ours"]
    given = (options.models, options.name, photos, options.precision)
    before = limits(*given)
    best = before[0]
    pixels_best = limits(*given, decoded=True)[0] if "triton-pixels" in clients else None
    alone = alone_ms(options.models, options.name, photos[:64], options.precision)
    print(
        f"{CORES} cores, load {os.getloadavg()[0]:.1f}, {options.precision}, {options.count} photos"
    )
    print(f"limit: {best.photos_s:.1f} photos/s ({best.loops} loops, batches of {best.batch})")
    if pixels_best:
        print(f"limit with pixels: {pixels_best.photos_s:.1f} photos/s")
    print(f"one photo alone: {alone:.1f} ms")
    rows: list[tuple[object, ...]] = [
        ("CLIENT", "CALLERS", "PHOTOS/S", "OF LIMIT", "P50 MS", "P99 MS", "P99/P50")
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        server(options.models, options.precision, options.serve) as address,
    ):
        lists = Path(folder) / "photos.txt"
        found = [str(path.resolve()) for path in photo_paths([options.photos])]
        lists.write_text("\n".join(found[i % len(found)] for i in range(options.count)))
        pixels = Path(folder) / "pixels.npy"
        if pixels_best:
            spec = engine_of(options.models, options.name, options.precision, 1).manifest
            np.save(pixels, np.stack([preprocess(p, spec.preprocessing) for p in photos]))
        for client in clients:
            for callers in options.rows:
                if client == "ours":
                    here = [sys.executable, __file__, *map(str, given[:2]), str(options.photos)]
                    here += ["--count", str(options.count), "--callers", str(callers)]
                    row = ask([*here, "--address", address])
                else:
                    source = pixels if client == "triton-pixels" else lists
                    script = str(Path(__file__).with_name("triton_load.py"))
                    load = [options.triton, script, address, options.name, str(source)]
                    row = ask([*load, str(callers)])
                of = pixels_best if client == "triton-pixels" and pixels_best else best
                figures = (f"{row['photos_s']:.1f}", f"{row['photos_s'] / of.photos_s:.2f}")
                tail = row["p99_ms"] / row["p50_ms"]
                times = (f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{tail:.1f}")
                rows.append((client, callers, *figures, *times))
    print(aligned(rows))
    after = limits(*given)[0]
    print(f"limit afterwards: {after.photos_s:.1f} photos/s")


if __name__ == "__main__":
    main()

"""The server beside the limit of the machine and beside other servers.

    .venv/bin/python benchmarks/server.py MODELS NAME PHOTOS --triton /tmp/triton/bin/python

The limit is what plain loops reach with no server (limit.py). Other tenants of a machine come and
go, so it is measured again before and after every row, and the row's share is of the mean of these
two; all rows are taken `--rounds` times, and their medians are told. Callers and servers share the
cores. Clients: ours, in a process of its own, by calls and by one stream with as many photos in
flight, each also with messages that photos share (max_batch=8), and NVIDIA's tritonclient (`pip
install tritonclient[grpc]` in an environment of its own) with photos (BYTES) and with pixels
(UINT8). Other servers get the same tritonclient (LitServe, which has HTTP alone, aiohttp), where an
environment that has them is named: see peers.py.
`--rows 16 --clients ours` is a quick look. (Not called serving.py, which would hide the package of
that name from every script in this folder.)
"""

import argparse
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
import uvloop
from callers import WARM, measured
from limit import CORES, alone_ms, engine_of, limits, parser_of, rate, read_photos
from started import free_port, started

from serving.client import AsyncClient
from serving.commandline import aligned
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess

HERE = Path(__file__).parent
SOME = 240  # photos for a look at the limit
COLUMNS = ("PHOTOS/S", "OF LIMIT", "P50 MS", "P99 MS")
TOGETHER = 8  # photos a message
OURS = ("ours", "ours-together", "ours-stream", "ours-stream-together")
CLIENTS = (*OURS, "triton-bytes", "triton-pixels")
PEERS = ("pytriton", "mlserver", "litserve")


@contextmanager
def peer(python: str, which: str, version: Path, name: str) -> Iterator[str]:
    """The address of another server with the same model; it may not be ready yet."""
    port = free_port()
    library = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()  # Triton's Python backend needs libpython
    process = subprocess.Popen(
        [python, str(HERE / "peers.py"), which, str(version), name, str(port)],
        env=os.environ | {"LD_LIBRARY_PATH": library},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


async def our_callers(
    address: str, name: str, photos: list[bytes], callers: int, max_batch: int
) -> dict:
    async with AsyncClient(address, max_batch=max_batch) as client:
        return await measured(lambda photo: client.classify([photo], model=name), photos, callers)


async def our_stream(
    address: str, name: str, photos: list[bytes], in_flight: int, max_batch: int
) -> dict:
    """As what `measured` returns."""
    async with AsyncClient(address, max_batch=max_batch) as client:

        async def taken_ms(some: list[bytes]) -> list[float]:
            results = client.stream(some, model=name, in_flight=in_flight)
            return [1e3 * result.latency_s async for result in results]

        await taken_ms(photos[:WARM])
        begin = time.perf_counter()
        taken = await taken_ms(photos)
        photos_s = len(photos) / (time.perf_counter() - begin)
        p50, p99 = (float(np.quantile(taken, q)) for q in (0.5, 0.99))
        return {"photos_s": photos_s, "p50_ms": p50, "p99_ms": p99}


class Load:
    """Callers in a process of their own; each asks for the next photo when it has its answer."""

    def __init__(self, options: argparse.Namespace, photos: list[bytes], folder: Path) -> None:
        self._options, self._photos, self._folder = options, photos, folder

    def __call__(self, client: str, address: str, callers: int) -> dict:
        given = self._options
        if client in OURS:
            command = [sys.executable, __file__, str(given.models), given.name, str(given.photos)]
            command += ["--count", str(given.count), "--callers", str(callers)]
            command += ["--address", address, "--clients", client]
        elif client == "litserve":
            command = [sys.executable, str(HERE / "http_load.py"), address, given.name]
            command += [str(self._files()), str(callers)]
        else:
            source = self._pixels() if client == "triton-pixels" else self._files()
            command = [given.triton, str(HERE / "triton_load.py"), address, given.name]
            command += [str(source), str(callers), *(["--column"] if client in PEERS else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    def _files(self) -> Path:
        path = self._folder / "photos.txt"
        found = [str(photo.resolve()) for photo in photo_paths([self._options.photos])]
        path.write_text("\n".join(found[i % len(found)] for i in range(self._options.count)))
        return path

    def _pixels(self) -> Path:
        path = self._folder / "pixels.npy"
        if not path.exists():
            given = self._options
            spec = engine_of(given.models, given.name, given.precision, 1).manifest.preprocessing
            np.save(path, np.stack([preprocess(photo, spec) for photo in self._photos]))
        return path


def plot(shares: dict[str, dict[int, float]], path: Path) -> None:
    """shares: server and client -> callers -> photos/s over the limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for client, by_callers in shares.items():
        axes.plot(list(by_callers), list(by_callers.values()), "o-", label=client)
    axes.axhline(1, color="black", linestyle="--", label="no server at all")
    axes.set_xscale("log", base=2)
    ticks = sorted({callers for by_callers in shares.values() for callers in by_callers})
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(xlabel="callers at once", ylabel="photos/s over the limit", ylim=(0, 1.08))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(path, dpi=110, metadata={"Software": None})


class Yardstick:
    """The limit as it is now, by the best way to use the cores."""

    def __init__(self, options: argparse.Namespace, photos: list[bytes], *, decoded: bool) -> None:
        given = (options.models, options.name, photos, options.precision)
        self.best = limits(*given, decoded=decoded)[0]
        cores = CORES // self.best.loops
        self.engine = engine_of(options.models, options.name, options.precision, cores)
        self._photos, self._decoded = photos[:SOME], decoded
        self.seen: list[float] = []

    def photos_s(self) -> float:
        loops, batch = self.best.loops, self.best.batch
        self.seen.append(rate(self.engine, self._photos, loops, batch, decoded=self._decoded))
        return self.seen[-1]

    def __str__(self) -> str:
        low, middle, high = (float(np.quantile(self.seen, q)) for q in (0, 0.5, 1))
        how = f"{self.best.loops} loops, batches of {self.best.batch}"
        return f"median {middle:.1f} photos/s, {low:.1f} to {high:.1f} ({how})"


def measure(options: argparse.Namespace, photos: list[bytes]) -> None:
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}, {options.precision}")
    alone = alone_ms(options.models, options.name, photos[:64], options.precision)
    print(f"one photo alone: {alone:.1f} ms")
    clients = [c for c in options.clients if options.triton or c in OURS]
    limit = Yardstick(options, photos, decoded=False)
    of = dict.fromkeys((*clients, *PEERS), limit)
    if "triton-pixels" in clients:
        of["triton-pixels"] = Yardstick(options, photos, decoded=True)
    rows: dict[tuple[str, int], list[list[float]]] = {}

    def add(client: str, address: str) -> None:
        before = of[client].photos_s()
        for callers in options.rows:
            row = load(client, address, callers)
            after = of[client].photos_s()
            share = row["photos_s"] / ((before + after) / 2)
            taken = [row["photos_s"], share, row["p50_ms"], row["p99_ms"]]
            rows.setdefault((client, callers), []).append(taken)
            print(f"{client}, {callers} callers: {share:.2f}", file=sys.stderr, flush=True)
            before = after

    version = (options.models / options.name / str(limit.engine.manifest.version)).resolve()
    with tempfile.TemporaryDirectory() as folder:
        load = Load(options, photos, Path(folder))
        for _ in range(options.rounds):
            with started(options.models, "--precision", options.precision, *options.serve) as ours:
                for client in clients:
                    add(client, ours.address)
            for which in PEERS:
                if python := getattr(options, which):
                    with peer(python, which, version, options.name) as address:
                        add(which, address)

    told: list[tuple[object, ...]] = [("SERVER AND CLIENT", "CALLERS", *COLUMNS, "P99/P50")]
    shares: dict[str, dict[int, float]] = {}
    for (client, callers), taken in rows.items():
        photos_s, share, p50, p99 = np.median(taken, axis=0)
        shares.setdefault(client, {})[callers] = share
        figures = (f"{photos_s:.1f}", f"{share:.2f}", f"{p50:.1f}", f"{p99:.1f}")
        told.append((client, callers, *figures, f"{p99 / p50:.1f}"))
    print(aligned(told))
    print(f"limit: {limit}")
    if "triton-pixels" in clients:
        print(f"limit with pixels: {of['triton-pixels']}")
    if options.plot:
        plot(shares, options.plot)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=400, help="photos a row")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of these")
    parser.add_argument("--precision", default="fp32", help="of ours (others have fp32)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], metavar="CALLERS")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--triton", metavar="PYTHON", help="Python with tritonclient[grpc]")
    for which in PEERS:
        parser.add_argument(f"--{which}", metavar="PYTHON", help=f"Python with {which}")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="flags of `serve`")
    parser.add_argument("--callers", type=int, help=argparse.SUPPRESS)  # we are the load
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    photos = read_photos(options.photos, options.count)
    if options.address:
        (client,) = options.clients
        way = our_stream if client.startswith("ours-stream") else our_callers
        max_batch = TOGETHER if client.endswith("together") else 1
        run = way(options.address, options.name, photos, options.callers, max_batch)
        print(json.dumps(uvloop.run(run)))
    else:
        measure(options, photos)


if __name__ == "__main__":
    main()

"""What a machine can do with no server at all: decode and run in plain loops on all cores.

    .venv/bin/python benchmarks/limit.py MODELS NAME PHOTOS

The same photos, decoded by the same preprocessing and run through the same ONNX file. Each way to
use the cores is tried (one loop a core with a session of one thread each, or one loop whose session
uses all cores, in batches of several sizes); the fastest is the limit that a server is held to.
"""

import argparse
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.commandline import aligned
from serving.engine import Engine, load_engine
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess
from serving.repository import Repository

CORES = len(os.sched_getaffinity(0))
BATCHES = (1, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Limit:
    loops: int
    batch: int
    photos_s: float


def engine_of(models: Path, name: str, precision: str, threads: int) -> Engine:
    repository = Repository(models)
    version = max(repository.versions(name))
    return load_engine(repository, name, version, device="cpu", cores=threads, precision=precision)


def rate(engine: Engine, photos: list[bytes], loops: int, batch: int, *, decoded: bool) -> float:
    """Photos a second of `loops` threads that share the work; decoded: leave the decoding out."""
    spec = engine.manifest.preprocessing
    ready = [preprocess(photo, spec) for photo in photos] if decoded else None
    starts = iter(range(0, len(photos), batch))
    lock = threading.Lock()

    def loop() -> None:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            part = range(start, min(start + batch, len(photos)))
            images = [ready[i] if ready else preprocess(photos[i], spec) for i in part]
            engine.run(np.stack(images))

    threads = [threading.Thread(target=loop) for _ in range(loops)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(photos) / (time.perf_counter() - begin)


def limits(
    models: Path, name: str, photos: list[bytes], precision: str, *, decoded: bool = False
) -> list[Limit]:
    """Every way to use the cores, the fastest first."""
    found = []
    for loops in sorted({1, CORES}):
        engine = engine_of(models, name, precision, threads=CORES // loops)
        rate(engine, photos[:32], loops, 4, decoded=decoded)
        for batch in BATCHES:
            photos_s = rate(engine, photos, loops, batch, decoded=decoded)
            found.append(Limit(loops=loops, batch=batch, photos_s=photos_s))
    return sorted(found, key=lambda limit: -limit.photos_s)


def alone_ms(models: Path, name: str, photos: list[bytes], precision: str) -> float:
    """Median latency of one photo at a time: decode, then run on all cores."""
    engine = engine_of(models, name, precision, threads=CORES)
    spec = engine.manifest.preprocessing
    taken = []
    for photo in photos:
        begin = time.perf_counter()
        engine.run(preprocess(photo, spec)[None])
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken[8:])


def parser_of(description: str) -> argparse.ArgumentParser:
    """For a model of a repository, and photos."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("name")
    parser.add_argument("photos", type=Path, help="folder")
    return parser


def read_photos(folder: Path, count: int) -> list[bytes]:
    """`count` photos of a folder, over again where it has fewer."""
    found = [path.read_bytes() for path in photo_paths([folder])]
    return [found[i % len(found)] for i in range(count)]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=320, help="photos (default: %(default)s)")
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    photos = read_photos(options.photos, options.count)
    rows: list[tuple[object, ...]] = [("LOOPS", "BATCH", "PHOTOS/S")]
    for limit in limits(options.models, options.name, photos, options.precision):
        rows.append((limit.loops, limit.batch, f"{limit.photos_s:.1f}"))
    print(aligned(rows))
    alone = alone_ms(options.models, options.name, photos[:64], options.precision)
    print(f"One photo alone: {alone:.1f} ms")


if __name__ == "__main__":
    main()

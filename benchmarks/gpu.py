"""The server's engine on a GPU beside raw ONNX Runtime: photos and tensors a second, by precision.

    .venv/bin/python benchmarks/gpu.py MODELS NAME PHOTOS

Raw is a session with the same provider settings, its input bound once in GPU memory, run in one
loop: what no server can pass. Exit code 2 where there is no GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from limit import read_photos

from serving.commandline import aligned
from serving.device import cuda_problem
from serving.engine import Engine, load_engine
from serving.preprocess import preprocess
from serving.repository import Repository
from serving.session import open_session

BATCHES = (1, 4, 16, 64)
SECONDS = 3.0


def rate(run: Callable[[], object], photos: int) -> float:
    """Photos a second of a run of so many, after a second of warming up."""
    for seconds in (1.0, SECONDS):
        count, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds:
            run()
            count += photos
    return count / elapsed


def raw(data: bytes, images: np.ndarray) -> Callable[[], object]:
    session = open_session(data, "model", 1, cuda=True)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda"))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def measure(
    engine: Engine, data: bytes, photos: list[bytes], pixels: np.ndarray
) -> tuple[float, float, float]:
    """Photos a second: raw, through the engine, and decoded by one thread first."""
    spec = engine.manifest.preprocessing

    def decode_and_run() -> None:
        engine.run(np.stack([preprocess(photo, spec) for photo in photos]))

    return (
        rate(raw(data, pixels), len(photos)),
        rate(lambda: engine.run(pixels), len(photos)),
        rate(decode_and_run, len(photos)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("name")
    parser.add_argument("photos", type=Path, help="folder")
    options = parser.parse_args()
    if problem := cuda_problem():
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    repository = Repository(options.models)
    version = max(repository.versions(options.name))
    manifest = repository.manifest(options.name, version)
    photos = read_photos(options.photos, max(BATCHES))
    pixels = np.stack([preprocess(photo, manifest.preprocessing) for photo in photos])
    rows: list[tuple[object, ...]] = [
        ("PRECISION", "BATCH", "RAW TENSORS/S", "TENSORS/S", "PHOTOS/S, ONE DECODER")
    ]
    for precision in sorted(manifest.variants.keys() - {"int8"}):
        engine = load_engine(
            repository, options.name, version, device="cuda", cores=1, precision=precision
        )
        data = repository.read_file(manifest, manifest.variants[precision].file)
        for batch in BATCHES:
            figures = measure(engine, data, photos[:batch], pixels[:batch])
            rows.append((precision, batch, *(f"{figure:.0f}" for figure in figures)))
    print(aligned(rows))


if __name__ == "__main__":
    main()

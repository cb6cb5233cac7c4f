"""The server's engine on a GPU beside raw ONNX Runtime: photos and tensors a second, by precision.

    .venv/bin/python benchmarks/gpu.py MODELS NAME PHOTOS [--tensorrt FOLDER]

Raw is a session of ONNX Runtime's CUDA provider as it comes, its input bound once in GPU memory,
run in one loop. Ours run without and with CUDA graphs, and with TensorRT where its folder is given;
each run copies its input to the GPU. Exit code 2 where there is no GPU.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from limit import parser_of, read_photos

from serving.commandline import aligned
from serving.device import cuda_problem
from serving.engine import Engine, load_engine
from serving.gpu_settings import GpuSettings
from serving.preprocess import preprocess
from serving.providers import CUDA
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
    session = open_session(data, "model", 1, [(CUDA, {"use_tf32": "0"})])
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda"))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def measure(engine: Engine, photos: list[bytes], pixels: np.ndarray) -> tuple[float, float]:
    """Photos a second through the engine: of pixels, and decoded by one thread first."""
    spec = engine.manifest.preprocessing

    def decode_and_run() -> None:
        engine.run(np.stack([preprocess(photo, spec) for photo in photos]))

    return rate(lambda: engine.run(pixels), len(photos)), rate(decode_and_run, len(photos))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tensorrt", default="", help="folder for its engines")
    options = parser.parse_args()
    if problem := cuda_problem():
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    repository = Repository(options.models)
    version = max(repository.versions(options.name))
    manifest = repository.manifest(options.name, version)
    photos = read_photos(options.photos, max(BATCHES))
    pixels = np.stack([preprocess(photo, manifest.preprocessing) for photo in photos])
    ways = {"bound": GpuSettings(), "graphs": GpuSettings(cuda_graphs="on")}
    if options.tensorrt:
        ways["TensorRT"] = GpuSettings(tensorrt=options.tensorrt)
    rows: list[tuple[object, ...]] = [
        ("PRECISION", "WAY", "BATCH", "TENSORS/S", "PHOTOS/S, ONE DECODER")
    ]
    for precision in sorted(manifest.variants.keys() - {"int8"}):
        data = repository.read_file(manifest, manifest.variants[precision].file)
        for batch in BATCHES:
            figure = rate(raw(data, pixels[:batch]), batch)
            rows.append((precision, "raw", batch, f"{figure:.0f}", ""))
        for way, gpu in ways.items():
            engine = load_engine(
                repository,
                options.name,
                version,
                device="cuda",
                cores=1,
                precision=precision,
                gpu=gpu,
                warm_sizes=lambda device: BATCHES,
            )
            for batch in BATCHES:
                figures = measure(engine, photos[:batch], pixels[:batch])
                rows.append((precision, way, batch, *(f"{figure:.0f}" for figure in figures)))
    print(aligned(rows))


if __name__ == "__main__":
    main()

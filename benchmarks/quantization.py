"""What int8 buys on this processor: latency of fp32 and int8 files, in turns on the same pixels.

    python benchmarks/quantization.py mobilenet_v2 resnet18

Weights are random, with batch norms' statistics of random pictures, unless --weights FILE is given.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from trainer.backbones import Calibrated, build
from trainer.export import Served, to_onnx
from trainer.quantize import calibrate, prepare, quantize

_SIZE = 224


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    vnni = [flag for flag in flags if "vnni" in flag] or ["no VNNI"]
    print(f"onnxruntime {onnxruntime.__version__}, {options.threads} thread(s), {' '.join(vnni)}")
    print(f"{'backbone':<20} {'batch':>5} {'fp32 ms':>9} {'int8 ms':>9} {'times as fast':>14}")
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            files = _files(backbone, options.weights, Path(folder))
            sessions = {name: _session(path, options.threads) for name, path in files.items()}
            for batch in (1, 16):
                taken = _latency(sessions, batch, max(3, options.runs // batch))
                gain = taken["fp32"] / taken["int8"]
                print(
                    f"{backbone:<20} {batch:>5} {taken['fp32']:>9.1f} {taken['int8']:>9.1f} "
                    f"{gain:>14.2f}",
                    flush=True,
                )
    return 0


def _files(backbone: str, weights: str, folder: Path) -> dict[str, Path]:
    path = folder / "model.onnx"
    classifier = build(backbone, 10, _SIZE, weights)
    if weights == "none":
        _settle(classifier)
    served = Served(Calibrated(classifier, 1.0)).eval()
    onnx.save(to_onnx(served, _SIZE), path)
    prepared = prepare(path)
    onnx.save(quantize(prepared, calibrate(prepared, _pixels(8), "minmax")), folder / "int8.onnx")
    return {"fp32": path, "int8": folder / "int8.onnx"}


def _settle(classifier: nn.Module) -> None:
    """Which form a hard swish takes in integers depends on how far its input reaches."""
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all that passes
    classifier.train()
    with torch.no_grad():
        classifier(torch.from_numpy(_pixels(16)).permute(0, 3, 1, 2) / 255)


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, _SIZE, _SIZE, 3), dtype=np.uint8)


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _latency(
    sessions: dict[str, onnxruntime.InferenceSession], batch: int, runs: int
) -> dict[str, float]:
    """Median milliseconds of a run; the sessions take turns, after one warm run each."""
    images = _pixels(batch)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs + 1):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"image": images})
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


if __name__ == "__main__":
    sys.exit(main())

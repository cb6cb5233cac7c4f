"""NVIDIA's perf_analyzer against a server of ours, over the Open Inference Protocol, with pixels.

    python benchmarks/perf_analyzer.py --models models --model pets --concurrency 1,4,16

Starts `serve` on a free port, or calls the one at --address. perf_analyzer lies in the wheel of
tritonclient 2.41.0, beside libraries that it needs from PyPI's CUDA 12 runtime and from Debian's
libb64-0d; the wheels go into an environment of their own (--environment).
"""

import argparse
import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from started import started

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79")
LIBRARY, DEBIAN = "libb64.so.0d", "libb64-0d"
# Column of perf_analyzer's CSV -> ours.
COLUMNS = {
    "Concurrency": "callers",
    "Inferences/Second": "photos_per_s",
    "p50 latency": "p50_us",
    "p99 latency": "p99_us",
    "Server Queue": "queue_us",
    "Server Compute Infer": "inference_us",
}


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def program(environment: Path) -> tuple[Path, dict[str, str]]:
    """perf_analyzer and the variables it needs; installed first if need be."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        fail(f"perf_analyzer needs {LIBRARY}: apt-get install {DEBIAN}")
    path = environment / "bin/perf_analyzer"
    if not path.is_file():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
        if uv is None:
            fail("no uv beside this Python; `make test` installs it")
        python = environment / "bin/python"
        subprocess.run(
            [uv, "venv", "-q", "--clear", "--python", sys.executable, environment], check=True
        )
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *PACKAGES], check=True)
    (library,) = environment.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    return path, os.environ | {"LD_LIBRARY_PATH": str(library)}


def measure(
    path: Path, variables: dict[str, str], address: str, options: argparse.Namespace, callers: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        done = subprocess.run(
            [
                *(path, "-m", options.model, "-u", address, "-i", "grpc", "--verbose-csv"),
                *("-b", str(options.batch), "--concurrency-range", str(callers)),
                *("-p", str(options.window_ms), "-s", str(options.stability)),
                *("-r", "6", "-f", report),
            ],
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0 or not report.is_file():
            fail(f"perf_analyzer: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        (row,) = csv.DictReader(report.read_text().splitlines())
    return {ours: float(row[theirs]) for theirs, ours in COLUMNS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--models", type=Path, default="models", help="repository to serve")
    parser.add_argument("--address", help="a server that runs already")
    parser.add_argument("--concurrency", default="1,4,16", help="callers, separated by commas")
    parser.add_argument("--batch", type=int, default=1, help="photos in a call")
    parser.add_argument("--window-ms", type=int, default=3000)
    parser.add_argument(
        "--stability", type=int, default=30, help="percent that three windows may differ by"
    )
    parser.add_argument("--environment", type=Path, default=ROOT / "build/perf-analyzer")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    path, variables = program(options.environment)

    def run(address: str) -> None:
        for callers in map(int, options.concurrency.split(",")):
            figures = measure(path, variables, address, options, callers)
            if options.json:
                print(json.dumps(figures), flush=True)
            else:
                print("  ".join(f"{name} {value:g}" for name, value in figures.items()), flush=True)

    if options.address:
        run(options.address)
    else:
        with started(options.models, "--device", "auto") as server:
            run(server.address)


if __name__ == "__main__":
    main()

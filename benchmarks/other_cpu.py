"""Whether a version answers alike on another kind of x86 processor, emulated by QEMU.

    apt-get install qemu-user
    python benchmarks/other_cpu.py MODELS/NAME/VERSION            # Haswell: AVX2, no VNNI

Every file of the version answers its golden pictures under `qemu-x86_64 -cpu CPU`; printed is how
far its logits are from the golden ones, which the machine that published it computed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from trainer.onnx_runner import OnnxRunner

_ANSWER = "--answer"


def main() -> int:
    if _ANSWER in sys.argv:
        answer(*map(Path, sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", type=Path)
    parser.add_argument("--cpu", default="Haswell-v4", help="see qemu-x86_64 -cpu help")
    options = parser.parse_args()
    print(
        "| file | logits up to | largest difference | first labels that differ |\n|---|---|---|---|"
    )
    for model in sorted(options.version.glob("model*.onnx")):
        golden = model.with_name(model.name.replace("model", "golden").replace(".onnx", ".npz"))
        command = ["qemu-x86_64", "-cpu", options.cpu, sys.executable, __file__, _ANSWER]
        done = subprocess.run([*command, model, golden], stdout=subprocess.PIPE, check=True)
        got = np.frombuffer(done.stdout, np.float32)
        with np.load(golden) as file:
            expected = file["logits"]
        got = got.reshape(expected.shape)
        other = int(np.sum(got.argmax(1) != expected.argmax(1)))
        difference, scale = np.abs(got - expected).max(), np.abs(expected).max()
        print(
            f"| {model.name} | {scale:.2f} | {difference:.2g} | {other} of {len(got)} |", flush=True
        )
    return 0


def answer(model: Path, golden: Path) -> None:
    """The logits of the golden pictures, as bytes on stdout."""
    with np.load(golden) as file:
        images = file["images"]
    _, logits = OnnxRunner(model).run(images, len(images))
    sys.stdout.buffer.write(logits.tobytes())


if __name__ == "__main__":
    sys.exit(main())

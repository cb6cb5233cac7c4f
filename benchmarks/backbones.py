"""Every backbone: parameters, input size, ONNX latency on this CPU, and parity with PyTorch.

    python benchmarks/backbones.py              # those of the documentation
    python benchmarks/backbones.py resnet18

Weights are random, with the batch-norm statistics of noise, so that logits depend on the picture:
then neither latency nor parity depends much on them. A Markdown table on stdout.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from serving.errors import PawprintError
from trainer.backbones import Calibrated, Classifier, build, trained_input
from trainer.evaluation import measure_latency
from trainer.export import Served, to_onnx
from trainer.onnx_runner import OnnxRunner
from trainer.parity import TOLERANCE, measure_parity

BACKBONES = (
    *("squeezenet1_1", "mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2"),
    *("efficientnet_b0", "regnet_y_400mf", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("efficientnet_v2_s", "convnext_tiny", "swin_t", "vit_b_16"),
    *("vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
)

_PASSES = 20


def main() -> int:
    print("| backbone | parameters, M | input, px | ms a photo | parity, of the logit scale |")
    print("|---|---|---|---|---|")
    for backbone in sys.argv[1:] or BACKBONES:
        try:
            print(_row(backbone), flush=True)
        except PawprintError as error:
            print(f"| {backbone} | {error} | | | |", flush=True)
    return 0


def _row(backbone: str) -> str:
    torch.manual_seed(0)
    size = trained_input(backbone).size
    classifier = build(backbone, 37, size)
    millions = sum(p.numel() for p in classifier.parameters()) / 1e6
    _settle(classifier, size)
    served = Served(Calibrated(classifier, 1.0)).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(to_onnx(served, size), path)
        parity, _ = measure_parity(served, OnnxRunner(path), images, (1, 4))
        alone = OnnxRunner(path, alone=True)
        latency_ms = measure_latency({backbone: alone}, images[:1])[backbone]
    error = parity.max_logit_error / parity.logit_scale
    verdict = "" if error <= TOLERANCE else " (would not be published)"
    return f"| {backbone} | {millions:.1f} | {size} | {latency_ms:.1f} | {error:.1e}{verdict} |"


def _settle(classifier: Classifier, size: int) -> None:
    """Give batch norms the statistics of what they see; else activations of deep nets vanish."""
    classifier.train()
    with torch.no_grad():
        for _ in range(_PASSES):
            classifier(torch.rand(8, 3, size, size))


if __name__ == "__main__":
    sys.exit(main())

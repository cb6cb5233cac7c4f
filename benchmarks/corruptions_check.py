"""Our corruptions beside those of the `imagecorruptions` package: how far each moves a photo.

    python -m venv /tmp/corruptions && /tmp/corruptions/bin/pip install imagecorruptions
    .venv/bin/python benchmarks/corruptions_check.py --peer /tmp/corruptions/bin/python PHOTO ...

The package needs names that newer versions of NumPy, SciPy, scikit-image and setuptools took away;
they are put back in the peer's process, or its blurs, fog and frost could not run at all. For each
kind and severity: the mean absolute change of a photo (levels of 255) by either, and, for the kinds
in which nothing is random, the PSNR between the two results.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SAME_EVERY_TIME = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")

PEER = r"""
import sys, types, numpy as np
resources = types.ModuleType("pkg_resources")
import importlib.util, os
root = os.path.dirname(importlib.util.find_spec("imagecorruptions").origin)
resources.resource_filename = lambda name, path: os.path.join(root, path)
sys.modules["pkg_resources"] = resources
import scipy.ndimage
interpolation = types.ModuleType("scipy.ndimage.interpolation")
interpolation.map_coordinates = scipy.ndimage.map_coordinates
sys.modules["scipy.ndimage.interpolation"] = interpolation
np.float_ = np.float64
import skimage.filters
gaussian = skimage.filters.gaussian
def with_multichannel(image, sigma=1, multichannel=False, **more):
    return gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **more)
skimage.filters.gaussian = with_multichannel
import imagecorruptions
names = {"elastic": "elastic_transform", "jpeg": "jpeg_compression"}
pictures = np.load(sys.argv[1]); kinds = sys.argv[3].split(","); np.random.seed(0)
np.save(sys.argv[2], np.stack([[[imagecorruptions.corrupt(p, severity=s,
    corruption_name=names.get(k, k)) for p in pictures] for s in range(1, 6)] for k in kinds]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", required=True, help="Python with imagecorruptions installed")
    parser.add_argument("photos", nargs="+", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from serving.modelspec import Preprocessing
    from serving.preprocess import preprocess
    from trainer.analysis.corruptions import KINDS, SEVERITIES, corrupt

    spec = Preprocessing(size=224, interpolation="bilinear")
    pictures = np.stack([preprocess(photo.read_bytes(), spec) for photo in arguments.photos])
    with tempfile.TemporaryDirectory() as folder:
        given, made = f"{folder}/given.npy", f"{folder}/made.npy"
        np.save(given, pictures)
        command = [arguments.peer, "-W", "ignore", "-c", PEER, given, made, ",".join(KINDS)]
        subprocess.run(command, check=True)
        theirs = np.load(made)
    print(f"{'kind':15s} ms   mean change, ours / theirs, severity 1 to 5" + " " * 24 + "PSNR dB")
    for kind, peers in zip(KINDS, theirs, strict=True):
        generator = np.random.default_rng(0)
        start = time.perf_counter()
        ours = np.stack(
            [[corrupt(p, kind, severity, generator) for p in pictures] for severity in SEVERITIES]
        )
        milliseconds = (time.perf_counter() - start) * 1000 / (len(pictures) * len(SEVERITIES))
        changes = "  ".join(
            f"{_change(o, pictures):5.1f} / {_change(t, pictures):5.1f}"
            for o, t in zip(ours, peers, strict=True)
        )
        alike = " ".join(f"{_psnr(o, t):.0f}" for o, t in zip(ours, peers, strict=True))
        print(
            f"{kind:15s} {milliseconds:3.0f}  {changes}  {alike if kind in SAME_EVERY_TIME else ''}"
        )


def _change(corrupted: np.ndarray, pictures: np.ndarray) -> float:
    return float(np.abs(corrupted.astype(float) - pictures).mean())


def _psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    error = np.mean((ours.astype(float) - theirs) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


if __name__ == "__main__":
    main()

"""How well transfer works on pictures of very different kinds: photos of pets, line drawings of
the same photos, cartoons, textures.

    python benchmarks/kinds.py --weights mobilenet_v2.pth --pets PETS          # all, minutes each
    python benchmarks/kinds.py --weights mobilenet_v2.pth --pets PETS textures

Each kind is learnt in four ways on the same photos, and measured through the exported file. Frozen:
a linear head on the pre-trained net. Random: the same on the same net with weights as initialised,
which says what the architecture alone does. Full: the head, then all stages. Scratch: all stages
from random weights in as many epochs. A Markdown table on stdout.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from textures import write_textures
from torchvision.models import get_model

from trainer.cartoons import write_cartoons
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.pipeline import train

WAYS = ("frozen", "random", "full", "scratch")
_BACKBONE = "mobilenet_v2"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help="of pets, sketches, cartoons, textures")
    parser.add_argument("--weights", required=True, help="of mobilenet_v2")
    parser.add_argument("--pets", type=Path, required=True, help="with train/ and test/")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    makers: dict[str, Callable[[Path], Path]] = {
        "pets": lambda folder: options.pets,
        "sketches": lambda folder: _sketches(options.pets, folder),
        "cartoons": _cartoons,
        "textures": _textures,
    }
    print("| pictures | way | accuracy on test | seconds | published |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        random = Path(place) / "random.pth"
        torch.manual_seed(options.seed)
        torch.save(get_model(_BACKBONE, weights=None).state_dict(), random)
        few: dict[str, Any] = {"epochs": options.epochs, "learning_rate": 1e-3}
        ways: dict[str, dict[str, Any]] = {
            "frozen": {"weights": options.weights, "epochs": 0},
            "random": {"weights": str(random), "epochs": 0},
            "full": {
                **few,
                "weights": options.weights,
                "learning_rate": 3e-4,
                "layer_decay": 0.8,
                "thaw": 1.0,
            },
            "scratch": {**few, "weights": "none"},
        }
        for kind in options.kinds or makers:
            data = makers[kind](Path(place) / kind)
            for way in options.ways:
                config = TrainConfig(
                    data=str(data),
                    name=f"{kind}-{way}",
                    out=str(Path(place) / "models"),
                    backbone=_BACKBONE,
                    size=options.size,
                    seed=options.seed,
                    **ways[way],
                )
                print(_row(kind, way, config), flush=True)
    return 0


def _row(kind: str, way: str, config: TrainConfig) -> str:
    published = train(config, Console(to_stderr=True))
    assert published is not None  # only one of several processes gets none
    seconds = published.manifest.training_seconds
    found = published.manifest.variants["fp32"].metrics
    interval = f"{found.accuracy_low:.3f} to {found.accuracy_high:.3f}"
    right = f"{found.accuracy:.3f} ({found.correct} of {found.photos}; {interval})"
    return f"| {kind} | {way} | {right} | {seconds:.0f} | {published.how} |"


def _cartoons(folder: Path) -> Path:
    write_cartoons(folder / "train", per_class=150, seed=0)
    write_cartoons(folder / "test", per_class=100, seed=1)
    return folder


def _textures(folder: Path) -> Path:
    write_textures(folder / "train", per_class=30, seed=0)
    write_textures(folder / "test", per_class=25, seed=1)
    return folder


def _sketches(photos: Path, folder: Path) -> Path:
    """Each photo as dark lines on white, where its brightness changes."""
    for path in sorted(photos.glob("*/*/*.jpg")):
        target = folder / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photo:
            grey = ImageOps.autocontrast(photo.convert("L").filter(ImageFilter.GaussianBlur(1.5)))
        lines = grey.filter(ImageFilter.FIND_EDGES).crop((2, 2, grey.width - 2, grey.height - 2))
        drawn = ImageOps.invert(ImageOps.autocontrast(lines, cutoff=(0, 2)))
        drawn.convert("RGB").save(target, quality=90)
    return folder


if __name__ == "__main__":
    sys.exit(main())

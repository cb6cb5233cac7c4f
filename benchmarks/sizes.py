"""What a larger or smaller picture does to the linear probe of a frozen backbone: accuracy and log
loss of the train and val photos, each by a head that has not seen it. No test photo takes part, so
a size may be chosen by it. The work grows with the square of the size.

    python benchmarks/sizes.py pets cats_vs_dogs --weights mobilenet_v2.pth

Touvron et al. 2019 (arXiv:1906.06423): nets trained on random crops see things larger than in a
centre crop of the same size, so they do better with a somewhat larger one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from serving.modelspec import Preprocessing
from trainer.backbones import build
from trainer.config import TrainConfig
from trainer.data import load_data
from trainer.features import cache_of, extract
from trainer.listing import find_photos
from trainer.metrics import accuracy, nll
from trainer.probe import fit_probe


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 224, 256, 288, 320])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache")
    options = parser.parse_args()
    print("| photos | size | accuracy | nats |")
    print("|---|---|---|---|")
    for folder in options.data:
        for size in options.sizes:
            print(_row(folder, size, options), flush=True)
    return 0


def _row(folder: str, size: int, options: argparse.Namespace) -> str:
    config = TrainConfig(
        data=folder, name="sizes", backbone=options.backbone, size=size, cache=options.cache
    )
    spec = Preprocessing(size=size, interpolation=config.interpolation)
    data = load_data(config, find_photos(config.data), spec, lambda items, *_: items)
    classifier = build(config.backbone, len(data.labels), size, options.weights)
    kept = cache_of(config, classifier, print)
    known = [*data.splits["train"], *data.splits["val"]]
    targets = np.concatenate([data.targets("train"), data.targets("val")])
    features = extract(classifier, known, data.squares, kept, lambda *_: None)
    found = []
    for seed in range(options.seeds):
        generator = np.random.default_rng(seed)
        unseen = fit_probe(features, targets, len(data.labels), generator).out_of_fold
        found.append((accuracy(unseen, targets), nll(unseen, targets)))
    right, loss = np.mean(found, axis=0)
    return f"| {Path(folder).name} | {size} | {right:.4f} | {loss:.4f} |"


if __name__ == "__main__":
    sys.exit(main())

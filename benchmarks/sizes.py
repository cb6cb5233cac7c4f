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
from frozen import opened, parser_of

from trainer.features import extract
from trainer.metrics import accuracy, nll
from trainer.probe import fit_probe


def main() -> int:
    parser = parser_of(__doc__, seeds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 224, 256, 288, 320])
    options = parser.parse_args()
    print("| photos | size | accuracy | nats |")
    print("|---|---|---|---|")
    for folder in options.data:
        for size in options.sizes:
            print(_row(folder, size, options), flush=True)
    return 0


def _row(folder: str, size: int, options: argparse.Namespace) -> str:
    _, data, classifier, kept = opened(folder, size, options)
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

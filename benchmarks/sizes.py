"""What a larger or smaller picture does to the linear probe of a frozen backbone, and a mirror
image beside it (`train --mirror`): accuracy and log loss of the train and val photos, each by a
head that has not seen it. No test photo takes part, so either may be chosen by it. The work grows
with the square of the size, and doubles with the mirror image.

    python benchmarks/sizes.py pets cats_vs_dogs --weights mobilenet_v2.pth

Touvron et al. 2019 (arXiv:1906.06423): nets trained on random crops see things larger than in a
centre crop of the same size, so they do better with a somewhat larger one.
"""

import argparse
import sys
from pathlib import Path

from frozen import known_of, opened, out_of_fold, parser_of


def main() -> int:
    parser = parser_of(__doc__, seeds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 224, 256, 288, 320])
    options = parser.parse_args()
    print("| photos | size | accuracy | nats | both ways: accuracy | nats |")
    print("|---|---|---|---|---|---|")
    for folder in options.data:
        for size in options.sizes:
            print(_row(folder, size, options), flush=True)
    return 0


def _row(folder: str, size: int, options: argparse.Namespace) -> str:
    _, data, classifier, kept = opened(folder, size, options)
    features, targets, classes = known_of(data, classifier, kept)
    ways = (features, features.mean(axis=1, keepdims=True))
    figures = [out_of_fold((each, targets, classes), options.seeds) for each in ways]
    cells = (f"{right:.4f} | {loss:.4f}" for right, loss in figures)
    return f"| {Path(folder).name} | {size} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

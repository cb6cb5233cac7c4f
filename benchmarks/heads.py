"""How a head on frozen features is solved: L-BFGS, and steps with each optimizer from each start.
Accuracy and log loss of the train and val photos, each by a head that has not seen it, the penalty
swept anew for each way; no test photo takes part.

    python benchmarks/heads.py pets --weights mobilenet_v2.pth
    python benchmarks/heads.py pets --weights mobilenet_v2.pth --optimizers sgd adam --inits normal
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from frozen import opened, parser_of

from trainer.config import HEAD_INITS, OPTIMIZERS, TrainConfig
from trainer.features import extract
from trainer.head_steps import solver_by_steps
from trainer.metrics import accuracy, nll
from trainer.probe import Solver, fit_head, fit_probe
from trainer.threads import keep_to_cores


def main() -> int:
    parser = parser_of(__doc__, seeds=1)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--inits", nargs="+", choices=HEAD_INITS, default=HEAD_INITS)
    options = parser.parse_args()
    keep_to_cores()
    print("| photos | solved by | accuracy | nats | s |")
    print("|---|---|---|---|---|")
    for folder in options.data:
        _, data, classifier, kept = opened(folder, 224, options)
        known = [*data.splits["train"], *data.splits["val"]]
        targets = np.concatenate([data.targets("train"), data.targets("val")])
        features = extract(classifier, known, data.squares, kept, lambda *_: None)
        for way, solve in _ways(options.optimizers, options.inits):
            found, begun = [], time.perf_counter()
            for seed in range(options.seeds):
                generator = np.random.default_rng(seed)
                probe = fit_probe(features, targets, len(data.labels), generator, solve=solve)
                unseen = probe.out_of_fold
                found.append((accuracy(unseen, targets), nll(unseen, targets)))
            right, loss = np.mean(found, axis=0)
            seconds = (time.perf_counter() - begun) / options.seeds
            name = Path(folder).name
            print(f"| {name} | {way} | {right:.3f} | {loss:.3f} | {seconds:.1f} |", flush=True)
    return 0


def _ways(optimizers: Sequence[str], inits: Sequence[str]) -> Iterator[tuple[str, Solver]]:
    yield "L-BFGS", fit_head
    for optimizer in optimizers:
        for init in inits:
            yield (
                f"{optimizer} from {init}",
                solver_by_steps(
                    optimizer=optimizer,
                    rate=TrainConfig.head_rate,
                    epochs=TrainConfig.head_epochs,
                    batch_size=TrainConfig.batch_size,
                    init=init,
                    seed=0,
                ),
            )


if __name__ == "__main__":
    sys.exit(main())

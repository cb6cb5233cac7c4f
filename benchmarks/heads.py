"""How a head on frozen features is solved: L-BFGS, and steps with each optimizer from each start.
Accuracy and log loss of the train and val photos, each by a head that has not seen it, the penalty
swept anew for each way; no test photo takes part.

    python benchmarks/heads.py pets --weights mobilenet_v2.pth
    python benchmarks/heads.py pets --weights mobilenet_v2.pth --optimizers sgd adam --inits normal
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from frozen import known_of, opened, out_of_fold, parser_of

from trainer.config import HEAD_INITS, OPTIMIZERS, TrainConfig
from trainer.fitting import solver_of
from trainer.probe import Solver, fit_head
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
        config, data, classifier, kept = opened(folder, 224, options)
        known = known_of(data, classifier, kept)
        for way, solve in _ways(config, options.optimizers, options.inits):
            begun = time.perf_counter()
            right, loss = out_of_fold(known, options.seeds, solve)
            seconds = (time.perf_counter() - begun) / options.seeds
            name = Path(folder).name
            print(f"| {name} | {way} | {right:.3f} | {loss:.3f} | {seconds:.1f} |", flush=True)
    return 0


def _ways(
    config: TrainConfig, optimizers: Sequence[str], inits: Sequence[str]
) -> Iterator[tuple[str, Solver]]:
    yield "L-BFGS", fit_head
    for optimizer in optimizers:
        for init in inits:
            by_steps = replace(config, head_solver="sgd", optimizer=optimizer, head_init=init)
            yield f"{optimizer} from {init}", solver_of(by_steps)


if __name__ == "__main__":
    sys.exit(main())

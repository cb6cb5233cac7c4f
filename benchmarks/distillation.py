"""What a teacher buys: a small net fine-tuned with and without one, the same photos and epochs.

    python benchmarks/distillation.py PHOTOS --weights mobilenet_v2.pth \\
        --student-weights squeezenet1_1.pth

The teacher is a frozen mobilenet_v2 with a linear head, the student squeezenet1_1: a linear head,
then all stages. Measured on the test photos are the best epoch on val, whatever it gained, and the
head alone, which is where both start.
"""

import argparse
import dataclasses
import sys
import tempfile

import numpy as np
import torch

from trainer.config import TrainConfig
from trainer.console import Console
from trainer.distributed import ALONE
from trainer.features import plain
from trainer.fitting import make_learner, start_from_probe
from trainer.learner import Learner
from trainer.metrics import accuracy, nll, wilson_interval
from trainer.pipeline import train
from trainer.preparing import prepare
from trainer.training import fine_tune

_TEACHER = "teacher"
_BATCH = 64


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--weights", required=True, help="of mobilenet_v2")
    parser.add_argument("--student-weights", required=True, help="of squeezenet1_1")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console(to_stderr=True)
    with tempfile.TemporaryDirectory() as place:
        config = TrainConfig(
            data=options.data,
            name=_TEACHER,
            out=place,
            backbone="mobilenet_v2",
            size=options.size,
            weights=options.weights,
            epochs=0,
        )
        taught = train(config, console)
        assert taught is not None  # only one of several processes gets none
        found = taught.manifest.variants["fp32"].metrics
        print("| net | seed | accuracy on test | nats |\n|---|---|---|---|")
        _say("teacher", 0, found.correct, found.photos, found.nll)
        for seed in range(options.seeds):
            student = dataclasses.replace(
                config,
                name="student",
                backbone="squeezenet1_1",
                weights=options.student_weights,
                seed=seed,
                epochs=options.epochs,
                learning_rate=3e-4,
                thaw=1.0,
            )
            _learn(student, console, "without a teacher", start=True)
            _learn(dataclasses.replace(student, teacher=_TEACHER), console, "with a teacher")
    return 0


def _learn(config: TrainConfig, console: Console, name: str, *, start: bool = False) -> None:
    run = prepare(config, console, ALONE)
    start_from_probe(run)
    learner = make_learner(run)
    if start:
        _measure("head alone", config.seed, learner)
    fine_tune(learner, lambda epoch: console.line(str(epoch)), lambda *_: None)
    _measure(name, config.seed, learner)


def _measure(name: str, seed: int, learner: Learner) -> None:
    data, classifier = learner.data, learner.classifier.eval()
    test, targets = data.splits["test"], data.targets("test")
    with torch.inference_mode():
        parts = [
            classifier(plain(data.squares, test[start : start + _BATCH])).double().numpy()
            for start in range(0, len(test), _BATCH)
        ]
    logits = np.concatenate(parts)
    right = round(accuracy(logits, targets) * len(targets))
    _say(name, seed, right, len(targets), nll(logits, targets))


def _say(name: str, seed: int, right: int, photos: int, nats: float) -> None:
    low, high = wilson_interval(right, photos)
    share = f"{right / photos:.3f} ({right} of {photos}; {low:.3f} to {high:.3f})"
    print(f"| {name} | {seed} | {share} | {nats:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

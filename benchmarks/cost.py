"""What the trainer costs beyond the arithmetic that nobody can do without.

    python benchmarks/cost.py PHOTOS --weights mobilenet_v2.pth

Publishing: from photos to a published version with a frozen backbone (`--epochs 0`), over the time
of decoding all photos and one forward pass of PyTorch over them in batches of 32; at most 1.3 is
asked. Once more with a `--cache` that knows the backbone and none of the photos. Step: photos a
second of a bare PyTorch loop (AdamW, all stages) on tensors already in memory, beside a step of
ours that decodes, crops and colours them first; 0.9 or more is asked. Both take turns, so that a
busy moment of the machine is shared.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `train` does, before torch is loaded

import torch
from torch.nn.functional import cross_entropy

from serving.modelspec import Preprocessing
from trainer.backbones import build
from trainer.config import TrainConfig
from trainer.console import Console, unshown
from trainer.data import load_data
from trainer.distributed import ALONE
from trainer.features import plain
from trainer.fitting import make_learner
from trainer.listing import find_photos
from trainer.pipeline import train
from trainer.preparing import prepare

_BATCH = 32


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--runs", type=int, default=3, help="of publishing, 2 or more; 0: leave it out"
    )
    parser.add_argument(
        "--steps", type=int, default=12, help="of each loop, 3 or more; 0: leave it out"
    )
    options = parser.parse_args()
    if options.runs != 0 and options.runs < 2:
        parser.error("--runs: the first fills the cache, so give 2 or more, or 0")
    if options.steps != 0 and options.steps < 3:
        parser.error("--steps: the first two are not counted, so give 3 or more, or 0")
    with tempfile.TemporaryDirectory() as place:
        config = TrainConfig(
            data=options.data,
            name="cost",
            out=place,
            backbone=options.backbone,
            size=options.size,
            weights=options.weights,
            epochs=0,
            workers=os.cpu_count() or 1,
        )
        if options.runs:
            _publishing(config, options.runs)
        if options.steps:
            _stepping(config, options.steps)
    return 0


def _publishing(config: TrainConfig, runs: int) -> None:
    console = Console(to_stderr=True)
    cache = Path(config.out) / "cache"
    known = dataclasses.replace(config, cache=str(cache))
    ratios: list[tuple[float, float]] = []
    for _ in range(runs):
        asked = _seconds(lambda: _decode_and_pass(config))
        ours = _seconds(lambda: train(config, console))
        for features in cache.glob("features-*"):
            features.unlink()
        again = _seconds(lambda: train(known, console))
        said = f"decoding and one pass {asked:.1f} s, published in {ours:.1f} s"
        print(f"{said}, with a cache {again:.1f} s", flush=True)
        ratios.append((ours / asked, again / asked))
    first, _ = map(statistics.median, zip(*ratios, strict=True))
    _, known_backbone = map(statistics.median, zip(*ratios[1:], strict=True))
    print(
        f"publishing: {first:.2f} times decoding and one pass (at most 1.3 is asked), "
        f"{known_backbone:.2f} where the cache knows the backbone"
    )


def _decode_and_pass(config: TrainConfig) -> None:
    spec = Preprocessing(size=config.size, interpolation=config.interpolation)
    data = load_data(config, find_photos(config.data), spec, unshown)
    net = build(config.backbone, len(data.labels), config.size, config.weights)
    net.to(memory_format=torch.channels_last)
    photos = [photo for members in data.splits.values() for photo in members]
    with torch.inference_mode():
        for start in range(0, len(photos), _BATCH):
            net(plain(data.squares, photos[start : start + _BATCH]))


def _stepping(config: TrainConfig, steps: int) -> None:
    run = prepare(config, Console(to_stderr=True), ALONE)
    run.classifier.freeze([])
    learner = make_learner(run)
    net = build(config.backbone, len(run.data.labels), config.size, config.weights)
    net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    photos = run.data.splits["train"]
    batches = [
        [(start + i) % len(photos) for i in range(_BATCH)]
        for start in range(0, steps * _BATCH, _BATCH)
    ]
    images = plain(run.data.squares, [photos[i] for i in batches[0]])
    labels = torch.tensor([photos[i].label for i in batches[0]])

    def bare() -> None:
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    asked: list[float] = []
    ours: list[float] = []
    for step, batch in enumerate(batches):
        asked.append(_seconds(bare))
        ours.append(
            _seconds(
                lambda batch=batch, step=step: learner.learn(  # type: ignore[misc]
                    batch, view=step, rate=1e-4, step=step, progress=0.0
                )
            )
        )
    bare_s, ours_s = statistics.median(asked[2:]), statistics.median(ours[2:])
    print(
        f"step: bare {_BATCH / bare_s:.1f} photos/s, ours {_BATCH / ours_s:.1f}: "
        f"{bare_s / ours_s:.2f} (0.9 or more is asked)"
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())

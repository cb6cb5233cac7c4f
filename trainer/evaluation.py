"""Test photos through the exported file: the figures that the manifest holds."""

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from serving.modelspec import Metrics
from trainer.console import Advance
from trainer.metrics import (
    Floats,
    Ints,
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    nll,
    wilson_interval,
)
from trainer.onnx_runner import OnnxRunner
from trainer.pictures import Photo, Pictures

_BATCH = 32
_LATENCY_RUNS = 24


def run_photos(
    runner: OnnxRunner, photos: Sequence[Photo], squares: Pictures, advance: Advance
) -> tuple[Floats, ...]:
    """What the file gives, each [n, ...], for photos preprocessed as the server does."""
    parts = []
    for start in range(0, len(photos), _BATCH):
        batch = squares.get(photos[start : start + _BATCH])
        parts.append(runner.run(np.stack(batch)))
        advance(len(batch), "")
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def measure(probabilities: Floats, logits: Floats, targets: Ints, labels: Sequence[str]) -> Metrics:
    """The metrics of [n, K] predictions for targets [n].

    Right is what a caller is told first: by probabilities, which tie where logits hardly differ.
    """
    matrix = confusion_matrix(probabilities.argmax(axis=1), targets, len(labels))
    correct, photos = int(np.trace(matrix)), len(targets)
    low, high = wilson_interval(correct, photos)
    return Metrics(
        photos=photos,
        correct=correct,
        accuracy=accuracy(probabilities, targets),
        accuracy_low=low,
        accuracy_high=high,
        nll=nll(logits.astype(np.float64), targets),
        ece=expected_calibration_error(probabilities, targets),
        per_class={
            label: (int(matrix[i, i]), int(matrix[i].sum())) for i, label in enumerate(labels)
        },
    )


def measure_latency(
    runners: Mapping[str, OnnxRunner], image: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """Milliseconds of one photo's inference, uint8 [1, S, S, 3], once it is warm.

    The files take turns, so that a busy moment of the machine is shared by all. On a busy machine
    half of the runs may wait for a core, ten times as long as they take: hence the lower quartile.
    """
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(_LATENCY_RUNS):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner.run(image, 1)
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {
        name: statistics.quantiles(runs[_LATENCY_RUNS // 3 :])[0] for name, runs in taken.items()
    }

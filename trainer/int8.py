"""Which way of quantising costs least: every choice is made by what the file answers on val."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from trainer.metrics import Floats, Ints, accuracy, divergence, mean_recall
from trainer.onnx_runner import OnnxRunner
from trainer.pictures import Pixels
from trainer.quantize import METHODS, Ranges, calibrate, layers, prepare, quantize
from trainer.split import spread

_SENSITIVITY_PHOTOS = 16
_ROUNDING = 1e-9  # 0.95 - 0.94 is above 0.01; one photo of a million is 1e-6


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of quantising, and what it cost on val."""

    method: str
    in_float: tuple[str, ...]  # layers
    accuracy: float
    accuracy_loss: float  # against fp32
    mean_recall: float | None  # where classes are balanced
    recall_loss: float | None
    divergence: float  # mean KL(fp32 || int8) of the probabilities, nats

    @property
    def loss(self) -> float:
        """Of accuracy, or of mean recall where that is more: a rare class is little of accuracy."""
        if self.recall_loss is None:
            return self.accuracy_loss
        return max(self.accuracy_loss, self.recall_loss)

    def rank(self) -> tuple[float, float]:
        """Lowest is best: by the loss; where it ties, as on few photos it often does, by KL."""
        return (self.loss, self.divergence)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    model: onnx.ModelProto
    chosen: Attempt
    attempts: tuple[Attempt, ...]


def quantize_within(
    path: Path,
    calibration: Pixels,
    val: Pixels,
    targets: Ints,
    max_loss: float,
    *,
    balanced: bool = False,
) -> Quantized:
    """The file in int8 with the calibration that costs least, and as few layers in float as can be.

    calibration, val: uint8 [n, S, S, 3]; targets [n] of val. If even with half its layers in float
    it loses more than `max_loss` of accuracy on val (where classes are `balanced`, of mean recall
    too), the best of all is returned.
    """
    prepared = prepare(path)
    expected = _logits(OnnxRunner(path), val)

    def attempt(method: str, in_float: Sequence[str]) -> tuple[onnx.ModelProto, Attempt]:
        model = quantize(prepared, ranges[method], in_float=in_float)
        got = _logits(OnnxRunner(model.SerializeToString()), val)
        right, recall = accuracy(got, targets), mean_recall(got, targets)
        return model, Attempt(
            method=method,
            in_float=tuple(in_float),
            accuracy=right,
            accuracy_loss=accuracy(expected, targets) - right,
            mean_recall=recall if balanced else None,
            recall_loss=mean_recall(expected, targets) - recall if balanced else None,
            divergence=divergence(expected, got),
        )

    ranges = {method: calibrate(prepared, calibration, method) for method in METHODS}
    tried = [attempt(method, ()) for method in METHODS]
    method = _best(tried)[1].method
    if loses_too_much(_best(tried)[1].loss, max_loss):
        some = val[spread(len(val), _SENSITIVITY_PHOTOS)]  # they come class by class
        worst_first = by_sensitivity(prepared, ranges[method], some)
        for count in _doubling(len(worst_first) // 2):
            tried.append(attempt(method, worst_first[:count]))
            if not loses_too_much(tried[-1][1].loss, max_loss):
                break
    model, chosen = _best(tried)
    return Quantized(model=model, chosen=chosen, attempts=tuple(each for _, each in tried))


def loses_too_much(loss: float, allowed: float) -> bool:
    """Whether `loss`, a difference of two shares, is above `allowed`, but for its rounding."""
    return loss > allowed + _ROUNDING


def by_sensitivity(prepared: onnx.ModelProto, ranges: Ranges, images: Pixels) -> list[str]:
    """Layers from the one that hurts most when it alone is quantised to the one that hurts least.

    images: uint8 [n, S, S, 3].
    """
    expected = _logits(OnnxRunner(prepared.SerializeToString()), images)

    def harm(layer: str) -> float:
        alone = quantize(prepared, ranges, only=[layer])
        return divergence(expected, _logits(OnnxRunner(alone.SerializeToString()), images))

    return sorted(layers(prepared), key=harm, reverse=True)


def _best(tried: Sequence[tuple[onnx.ModelProto, Attempt]]) -> tuple[onnx.ModelProto, Attempt]:
    return min(tried, key=lambda each: each[1].rank())


def _logits(runner: OnnxRunner, images: Pixels) -> Floats:
    return runner.run(images)[1]


def _doubling(limit: int) -> Iterator[int]:
    count = 1
    while count <= limit:
        yield count
        count *= 2

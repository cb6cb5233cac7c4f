"""Other precisions of an exported file, each published only where it costs little accuracy."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from serving.errors import first_line
from serving.modelspec import Familiarity, Metrics, Parity, Variant, outputs_of
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData
from trainer.errors import FailedCheck
from trainer.evaluation import measure, measure_latency, run_photos
from trainer.export import Served
from trainer.familiarise import Familiarised
from trainer.familiarity import threshold_of
from trainer.half import to_half
from trainer.int8 import loses_too_much, quantize_within
from trainer.metrics import Floats
from trainer.onnx_runner import OnnxRunner
from trainer.parity import Disagreement, measure_parity
from trainer.pictures import Photo
from trainer.split import spread

FP32, INT8, FP16 = "fp32", "int8", "fp16"
QUANTIZATION = "quantization.json"

T = TypeVar("T")

_GOLDEN_PHOTOS = 8
_CALIBRATION_PHOTOS = 64
_VAL_PHOTOS = 512  # that decide how to quantise


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file with all that was measured of it, but for its latency."""

    file: str
    runner: OnnxRunner
    metrics: Metrics
    parity: Parity
    differ: tuple[Disagreement, ...]
    probabilities: Floats  # [n, K] of the test photos
    logits: Floats
    familiarity: Floats | None  # [n] of the test photos


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every file of a version is measured on."""

    served: Served
    data: PhotoData
    images: np.ndarray  # uint8 [n, S, S, 3]: test photos for parity
    console: Console
    exported: onnx.ModelProto  # in fp32, without the familiarity
    familiarised: Familiarised | None

    def from_file(self, make: Callable[[Path], T]) -> T:
        """What `make` makes of the exported file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "exported.onnx")
            onnx.save(self.exported, path)
            return make(path)

    def write(self, model: onnx.ModelProto, path: Path, precision: str) -> None:
        """With the familiarity, if there is one. In place."""
        if self.familiarised is not None:
            self.familiarised.attach(model, precision)
        onnx.save(model, path)

    def measure(self, path: Path, precision: str) -> Candidate:
        """Parity on `images`, and the test photos through the file at `path`."""
        names = outputs_of(self.familiarised is not None)
        runner = OnnxRunner(path, names, precision=precision)
        test = self.data.splits["test"]
        parity, differ = measure_parity(self.served, runner, self.images)
        with self.console.bar(f"Test photos through {precision}", len(test)) as advance:
            probabilities, logits, *rest = run_photos(runner, test, self.data.squares, advance)
        return Candidate(
            file=path.name,
            runner=runner,
            metrics=measure(probabilities, logits, self.data.targets("test"), self.data.labels),
            parity=parity,
            differ=tuple(differ),
            probabilities=probabilities,
            logits=logits,
            familiarity=rest[0][:, 0] if rest else None,
        )


def add_precisions(
    bench: Bench, folder: Path, fp32: Candidate, config: TrainConfig
) -> dict[str, Candidate]:
    """fp32, and each other precision asked for that loses no more than it may on the test photos.

    The files of those lie in `folder` afterwards, with golden answers of their own; how int8 was
    chosen too. One that can't be made is left out and said: it costs no finished training.
    """
    made_by: dict[str, Callable[[], onnx.ModelProto]] = {}
    if config.int8:
        made_by[INT8] = lambda: _to_int8(bench, folder, config)
    if config.fp16:
        made_by[FP16] = lambda: bench.from_file(to_half)
    candidates = {FP32: fp32}
    for precision, make in made_by.items():
        path, golden = folder / f"model.{precision}.onnx", folder / f"golden.{precision}.npz"
        try:
            bench.write(make(), path, precision)
            candidate = bench.measure(path, precision)
            _require_accuracy(candidate.metrics, fp32.metrics, config)
            save_golden(golden, candidate.runner, bench.images)
        except Exception as error:  # converters and ONNX Runtime raise what they like
            bench.console.line(f"{precision} is left out: {first_line(error)}")
            for file in (path, golden):
                file.unlink(missing_ok=True)
        else:
            candidates[precision] = candidate
    return candidates


def _require_accuracy(metrics: Metrics, fp32: Metrics, config: TrainConfig) -> None:
    """Raises FailedCheck if too much is lost on the test photos."""
    shares = {"accuracy": (metrics.accuracy, fp32.accuracy)}
    if config.balance != "none":
        shares["mean recall"] = (_mean_recall(metrics), _mean_recall(fp32))
    for share, (left, had) in shares.items():
        if loses_too_much(had - left, config.max_accuracy_loss):
            raise FailedCheck(
                f"it loses {had - left:.4f} of {share} on the test photos ({left:.4f}, fp32 has "
                f"{had:.4f}); --max-accuracy-loss is {config.max_accuracy_loss:g}"
            )


def _mean_recall(metrics: Metrics) -> float:
    return float(np.mean([right / n for right, n in metrics.per_class.values() if n]))


def _to_int8(bench: Bench, folder: Path, config: TrainConfig) -> onnx.ModelProto:
    """How it was chosen lies in `folder`."""
    bench.console.line("Quantising: int8, calibrated on training photos, chosen on val")
    data = bench.data
    train, val = data.splits["train"], data.splits["val"]
    some = spread(len(val), _VAL_PHOTOS)
    quantized = bench.from_file(
        lambda exported: quantize_within(
            exported,
            np.stack(data.squares.get(_some(train, _CALIBRATION_PHOTOS))),
            np.stack(data.squares.get([val[i] for i in some])),
            data.targets("val")[some],
            config.max_accuracy_loss,
            balanced=config.balance != "none",
        )
    )
    attempts = [dataclasses.asdict(attempt) for attempt in quantized.attempts]
    chosen = quantized.chosen
    value = {"chosen": dataclasses.asdict(chosen), "attempts": attempts}
    (folder / QUANTIZATION).write_text(json.dumps(value, indent=1) + "\n")
    recall = "" if chosen.recall_loss is None else f" and {chosen.recall_loss:+.4f} of mean recall"
    bench.console.line(
        f"int8: {chosen.method} calibration, {len(chosen.in_float)} layers "
        f"in float; on val {chosen.accuracy_loss:+.4f} of accuracy{recall} lost"
    )
    return quantized.model


def as_variants(
    candidates: Mapping[str, Candidate], folder: Path, image: np.ndarray
) -> dict[str, Variant]:
    """With the latency of each on `image`, uint8 [1, S, S, 3]; their files lie in `folder`."""
    alone = {
        precision: OnnxRunner(folder / candidate.file, alone=True, precision=precision)
        for precision, candidate in candidates.items()
    }
    latency_ms = measure_latency(alone, image)
    return {
        precision: Variant(
            file=candidate.file,
            metrics=candidate.metrics,
            parity=candidate.parity,
            latency_ms=latency_ms[precision],
        )
        for precision, candidate in candidates.items()
    }


def familiarity_of(
    familiarised: Familiarised | None, candidates: Mapping[str, Candidate], level: float
) -> Familiarity | None:
    """What the output of that name means, measured on the test photos; level: the share of photos
    like those learnt from that may be unfamiliar."""
    if familiarised is None:
        return None
    told = Familiarity(
        photos=familiarised.photos,
        threshold=threshold_of(familiarised.photos, level),
        unfamiliar={},
    )
    shares = {
        precision: told.share(candidate.familiarity.tolist())
        for precision, candidate in candidates.items()
        if candidate.familiarity is not None
    }
    return dataclasses.replace(told, unfamiliar=shares)


def save_golden(path: Path, runner: OnnxRunner, images: np.ndarray) -> None:
    """Pictures with their answers, by which a server proves that its machine computes the same."""
    chosen = images[spread(len(images), _GOLDEN_PHOTOS)]
    answers: dict[str, Any] = dict(
        zip(runner.outputs, runner.run(chosen, len(chosen)), strict=True)
    )
    np.savez(path, images=chosen, **answers)


def _some(photos: Sequence[Photo], count: int) -> list[Photo]:
    return [photos[i] for i in spread(len(photos), count)]

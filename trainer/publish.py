"""A trained net to a published version: exported, checked, measured, and then seen all at once."""

import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from serving.modelspec import (
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    Preprocessing,
    Variant,
)
from serving.repository import Repository
from trainer.backbones import IMAGENET, WEIGHTS, Calibrated, version_state
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData
from trainer.evaluation import measure, measure_latency, run_photos
from trainer.export import OPSET, Served, export_onnx
from trainer.onnx_runner import OnnxRunner
from trainer.parity import measure_parity, require_parity
from trainer.plots import save_plots
from trainer.training import Epoch

MODEL = "model.onnx"

_GOLDEN_PHOTOS = 8
_PARITY_PHOTOS = 42  # whole batches of 1, 2 and 7
_SOFTWARE = ("pawprint", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "pillow")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How the weights came about."""

    how: str
    temperature: float
    penalty: float | None  # of the linear probe
    history: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    path: Path
    manifest: Manifest
    how: str


def publish(
    repository: Repository,
    calibrated: Calibrated,
    data: PhotoData,
    spec: Preprocessing,
    config: TrainConfig,
    fitted: Fitted,
    started: float,
    console: Console,
) -> Published:
    """Export `calibrated` (on the CPU, in eval mode) and publish it as the next version.

    Raises FailedCheck if the file is not what PyTorch computes; then nothing is published.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    test = data.splits["test"]
    with repository.staging(config.name) as folder:
        console.line("Exporting to ONNX")
        served = Served(calibrated).eval()
        export_onnx(served, config.size, folder / MODEL)
        runner = OnnxRunner(folder / MODEL)
        sample = [test[i] for i in _spread(len(test), _PARITY_PHOTOS)]
        images = np.stack(data.squares.get(sample))
        parity, differ = measure_parity(served, runner, images)
        require_parity(parity, differ, [photo.file for photo in sample])
        _save_golden(folder / "golden.npz", runner, images)
        with console.bar("Test photos through ONNX", len(test)) as advance:
            probabilities, logits = run_photos(runner, test, data.squares, advance)
        targets = data.targets("test")
        latency_ms = measure_latency(runner, images[:1])
        metrics = measure(probabilities, logits, targets, data.labels)
        variant = Variant(file=MODEL, metrics=metrics, parity=parity, latency_ms=latency_ms)
        save_file(version_state(calibrated.classifier), folder / WEIGHTS)
        (folder / "split.json").write_text(data.split_json(), encoding="utf-8")
        (folder / "training.json").write_text(_training_json(fitted), encoding="utf-8")
        save_plots(folder / "plots", fitted.history, probabilities, targets, data.labels)

        def describe(number: int, files: dict[str, FileEntry]) -> Manifest:
            return Manifest(
                schema_version=SCHEMA_VERSION,
                name=config.name,
                version=number,
                created=created,
                backbone=config.backbone,
                labels=data.labels,
                preprocessing=spec,
                normalisation=IMAGENET,
                temperature=fitted.temperature,
                opset=OPSET,
                dataset=data.describe(),
                configuration=dataclasses.asdict(config),
                training_seconds=round(time.monotonic() - started, 1),
                variants={"fp32": variant},
                software=_software(),
                files=files,
            )

        number = repository.publish(config.name, folder, describe)
    manifest = repository.manifest(config.name, number)
    return Published(path=repository.path(config.name, number), manifest=manifest, how=fitted.how)


def _spread(length: int, count: int) -> list[int]:
    """`count` indices spread over range(length), or all of them."""
    return sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))


def _save_golden(path: Path, runner: OnnxRunner, images: np.ndarray) -> None:
    """Pictures with their answers, by which a server proves that its machine computes the same."""
    chosen = images[np.linspace(0, len(images) - 1, _GOLDEN_PHOTOS).round().astype(int)]
    probabilities, logits = runner.run(chosen, _GOLDEN_PHOTOS)
    np.savez(path, images=chosen, logits=logits, probabilities=probabilities)


def _training_json(fitted: Fitted) -> str:
    value = dataclasses.asdict(fitted)
    for epoch in value["history"]:
        for name in ("train_loss", "train_accuracy"):
            if epoch["epoch"] == 0:
                epoch[name] = None  # there were no steps yet; JSON has no nan
    return json.dumps(value, indent=1) + "\n"


def _software() -> dict[str, str]:
    packages = {name: installed(name) for name in (*_SOFTWARE, "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}

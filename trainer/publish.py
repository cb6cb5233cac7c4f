"""A trained net to a published version: exported, checked, measured, and then seen all at once."""

import contextlib
import dataclasses
import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save

from serving.errors import BrokenVersion, NotFound, PawprintError, Unavailable, first_line
from serving.layout import DEFAULT_ALIAS
from serving.modelspec import (
    FAMILIARITY_FILE,
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    other_labels,
)
from serving.repository import Repository
from trainer.backbones import WEIGHTS, Calibrated, version_state
from trainer.chance import may_be_chance
from trainer.data import PhotoData
from trainer.export import OPSET, Served
from trainer.familiarise import familiarised
from trainer.figures import save_png
from trainer.known_photos import SPLIT
from trainer.label_errors import (
    LABEL_ERRORS,
    label_errors_csv,
    say_label_errors,
    with_test_label_errors,
)
from trainer.metrics import expected_calibration_error, softmax
from trainer.mistakes import MOST, draw_label_errors, draw_strangest
from trainer.parity import require_parity, rounding_of
from trainer.plots import save_plots
from trainer.preparing import Run
from trainer.results import Fitted, Published
from trainer.software import software
from trainer.split import spread
from trainer.variants import (
    FP32,
    Bench,
    add_precisions,
    as_variants,
    familiarity_of,
    save_golden,
)

MODEL = "model.onnx"

SETTINGS_OF_VARIANTS = ("int8", "fp16", "max_accuracy_loss", "unfamiliar")
_PARITY_PHOTOS = 42  # whole batches of 1, 2 and 7


def publish(run: Run, fitted: Fitted, started: float) -> Published:
    """Export the net of the run, with its temperature, and publish it as the next version.

    Moves the net to the CPU. `started`, on the monotonic clock, is the training's, had it not been
    stopped in between. Raises FailedCheck if the file is not what PyTorch computes; then nothing is
    published. Unavailable if the store of a bucket fails; it says where on this machine the version
    is kept.
    """
    repository, data, config = run.repository, run.data, run.config
    created = datetime.now(UTC).isoformat(timespec="seconds")
    test = data.splits["test"]
    run.classifier.to("cpu").to(memory_format=torch.contiguous_format)
    calibrated = Calibrated(run.classifier, fitted.temperature).eval()
    with repository.staging(config.name) as folder:
        served = Served(calibrated).eval()
        exported = run.exporter.export(calibrated)
        sample = [test[i] for i in spread(len(test), _PARITY_PHOTOS)]
        images = np.stack(data.squares.get(sample))
        bench = Bench(
            served=served,
            data=data,
            images=images,
            console=run.console,
            exported=exported,
            familiarised=familiarised(run, exported),
        )
        fp32_file = onnx.ModelProto()
        fp32_file.CopyFrom(exported)
        bench.write(fp32_file, folder / MODEL, FP32)
        fp32 = bench.measure(folder / MODEL, FP32)
        require_parity(
            fp32.parity,
            fp32.differ,
            [photo.file for photo in sample],
            lambda: rounding_of(served, images),
        )
        save_golden(folder / "golden.npz", fp32.runner, images)
        candidates = add_precisions(bench, folder, fp32, config)
        variants = as_variants(candidates, folder, images[:1])
        told = familiarity_of(bench.familiarised, candidates, config.unfamiliar)
        if told is not None:
            value = dataclasses.asdict(told)
            (folder / FAMILIARITY_FILE).write_text(json.dumps(value, indent=1) + "\n")
        # Not save_file: its error where the disk is full is no OSError.
        (folder / WEIGHTS).write_bytes(save(version_state(run.classifier)))
        (folder / SPLIT).write_text(data.split_json(), encoding="utf-8")
        data = with_test_label_errors(data, fp32.logits)
        say_label_errors(data, ("test",), run.console)
        targets = data.targets("test")
        by_chance = may_be_chance(fp32.metrics, fp32.logits, targets, config)
        if by_chance is not None:
            run.console.line(by_chance)
        uncalibrated = softmax(fp32.logits * fitted.temperature)
        ece = expected_calibration_error(uncalibrated, targets)
        (folder / "training.json").write_text(training_json(fitted, ece, data), encoding="utf-8")
        if data.label_errors:
            (folder / LABEL_ERRORS).write_text(label_errors_csv(data), encoding="utf-8")
        try:
            save_plots(
                folder / "plots",
                fitted.history,
                fp32.probabilities,
                uncalibrated,
                targets,
                data.labels,
                lambda chosen: data.squares.get([test[i] for i in chosen]),
            )
            if data.label_errors:
                save_png(draw_label_errors(data), folder / "plots/label_errors.png")
            if bench.familiarised is not None:
                strangest = draw_strangest(data, bench.familiarised.strangest(MOST))
                save_png(strangest, folder / "plots/strangest.png")
        except Exception as error:  # no picture may cost a finished training
            run.console.line(f"Warning: not all plots could be drawn: {first_line(error)}")

        # Once: it may be described again, and `models copy` knows by it what is there already.
        training_seconds = round(time.monotonic() - started, 1)

        def describe(number: int, files: dict[str, FileEntry]) -> Manifest:
            return Manifest(
                schema_version=SCHEMA_VERSION,
                name=config.name,
                version=number,
                created=created,
                backbone=config.backbone,
                labels=data.labels,
                preprocessing=run.spec,
                normalisation=run.classifier.normalisation,
                temperature=fitted.temperature,
                opset=OPSET,
                dataset=data.describe(),
                configuration=dataclasses.asdict(config),
                training_seconds=training_seconds,
                variants=variants,
                software=software(config.backbone),
                files=files,
            )

        manifest = _publish_or_keep(run, folder, describe, fitted.how)
    return _published(run, manifest, fitted.how)


def published_before(run: Run, fitted: Fitted) -> Published | None:
    """The version that this training has published, where the process that did was killed before
    its checkpoint was removed. Other precisions than were asked for then are published anew."""
    noted = run.checkpoints.noted() if run.checkpoints is not None else None
    if noted is None:
        return None
    manifest = _manifest_of(run, *noted)
    asked = dataclasses.asdict(run.config)
    if manifest is None or any(
        manifest.configuration[key] != asked[key] for key in SETTINGS_OF_VARIANTS
    ):
        return None
    _tell_later(run, manifest, fitted.how)  # this job may end before it has deleted the checkpoint
    return _published_to_all_but_triton(run, manifest, fitted.how)


def _tell_later(run: Run, manifest: Manifest, how: str) -> None:
    """For `published_by_job`; before the version is there, as a process may be killed just then."""
    word = json.dumps([manifest.version, _digest(manifest), how])
    run.world.tell_later(manifest.name, word)


def published_by_job(run: Run) -> Published | None:
    """The version that an earlier attempt of the same job has published: torchrun starts all
    processes again where one ends badly, though that be when all is done."""
    told = run.world.told(run.config.name)
    if told is None:
        return None
    version, digest, how = json.loads(told)
    manifest = _manifest_of(run, version, digest)
    return None if manifest is None else _published_to_all_but_triton(run, manifest, how)


def _digest(manifest: Manifest) -> str:
    """As Repository.manifest_digest gives it, once this is published."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def _manifest_of(run: Run, version: int, digest: str) -> Manifest | None:
    """None if that version is gone, another, or never came to be."""
    repository, name = run.repository, run.config.name
    try:
        there = repository.manifest_digest(name, version) == digest
        return repository.manifest(name, version) if there else None
    except (BrokenVersion, NotFound):
        return None


def _published_to_all_but_triton(run: Run, manifest: Manifest, how: str) -> Published:
    """Who was killed may have come to all but that."""
    run.repository.describe_to_triton(manifest.name, manifest.version)
    return _published(run, manifest, how)


def _published(run: Run, manifest: Manifest, how: str) -> Published:
    repository, name = run.repository, run.config.name
    place = f"{repository.location}/{name}/{manifest.version}"
    familiarity, stable, said = None, None, ""
    with contextlib.suppress(PawprintError, OSError):  # what fails now has the version all the same
        familiarity = repository.familiarity(manifest)
        stable = repository.aliases(name).get(DEFAULT_ALIAS)
        earlier = (v for v in repository.versions(name) if v < manifest.version)
        before = stable or max(earlier, default=manifest.version)
        said = other_labels(repository.manifest(name, before), manifest)
    return Published(
        place=place,
        manifest=manifest,
        how=how,
        familiarity=familiarity,
        stable=stable,
        other_labels=said,
    )


def _publish_or_keep(
    run: Run,
    staging: Path,
    describe: Callable[[int, dict[str, FileEntry]], Manifest],
    how: str,
) -> Manifest:
    repository, name, checkpoints = run.repository, run.config.name, run.checkpoints

    def noted(number: int, files: dict[str, FileEntry]) -> Manifest:
        manifest = describe(number, files)
        with contextlib.suppress(RuntimeError):  # of a store that has gone
            _tell_later(run, manifest, how)
        if checkpoints is not None:
            with contextlib.suppress(OSError):  # it costs no version
                checkpoints.note(number, _digest(manifest))
        return manifest

    try:
        return repository.publish(name, staging, noted)
    except Unavailable as error:
        here = Repository(repository.root)
        kept = f"{name}/{here.publish(name, staging, describe).version}"
        command = ["models", "copy", kept, "--models", here.location, "--to", repository.location]
        raise Unavailable(
            f"{error}; {kept} is kept in {here.location}: publish it with {shlex.join(command)}"
        ) from error


def training_json(fitted: Fitted, uncalibrated_ece: float, data: PhotoData) -> str:
    """How the weights came about, epoch by epoch; null where a figure is no number."""
    value = dataclasses.asdict(fitted) | {"ece_without_temperature": uncalibrated_ece}
    for key, pairs in (("alike", data.alike), ("at_odds", data.at_odds)):
        value[key] = [[pair.one.file, pair.other.file] for pair in pairs]
    # Before any step there is no loss, and one too large for a number is none; JSON has no nan.
    value["history"] = [
        {k: v if v is None or math.isfinite(v) else None for k, v in epoch.items()}
        for epoch in value["history"]
    ]
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

"""The `train` command: a folder of photos to a published version of a model."""

import argparse
import dataclasses
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from serving.errors import InvalidRequest, PawprintError
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.errors import FailedCheck
from trainer.interrupt import INTERRUPTED, ends_when_interrupted

if TYPE_CHECKING:
    from serving.modelspec import Manifest
    from trainer.publish import Published

_DESCRIPTION = """\
Train an image classifier on a folder of photos and publish it as the next version of a model.

DIR holds a folder for each class with its photos, or train/, val/ and test/ with such folders in
them; what is missing of val and test is split off, evenly over the classes. Every photo is opened
first: files that can't be read, and duplicates, are named and left out.

With pre-trained weights (--weights imagenet or a file) a linear head is solved on the frozen
backbone, and the last stages are then fine-tuned; what is best on val is kept. With --weights none
the whole net is trained from scratch. The test photos are measured through the exported ONNX file.

With --adversarial pgd-3@4/255 the whole net learns from photos that were first changed against it,
so that small perturbations turn it less often, at a price in clean accuracy; `analyze` shows both.
"""
_EPILOG = """\
examples:
  train --data photos                     # names, chooses and says the rest
  train --data oxford-iiit-pet            # downloads it, and takes its own split
  train --data 's3://bucket/photos-{000..031}.tar'    # WebDataset shards
  train --data photos --name pets --compare
  train --data photos --name pets --tune 30   # searches what is not given
  train --data photos --name small-pets --backbone mobilenet_v3_small --teacher pets
  train --data photos --name pets --backbone resnet50 --epochs 0
  train --data photos --name pets --weights mobilenet_v2.pth
  train --data drawings --name drawings --backbone tiny --weights none
  train --data photos --name sturdy-pets --adversarial pgd-3@4/255

Every flag may also be set in the environment (PAWPRINT_TRAIN_EPOCHS=3) or in a TOML file given by
--config; a flag wins over the environment, and that over the file.
exit codes: 0 published, 1 a check failed (nothing published), 2 wrong input or a place that can't
be used, 130 interrupted
"""
_INTERRUPTED = "error: interrupted; nothing was published"
_ENVIRONMENT = "PAWPRINT_TRAIN_"
_FROM_SCRATCH = {
    "epochs": 15,
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
    "thaw": 1.0,
}
# Robustness is learnt by all stages, from pictures that are never the same.
_ADVERSARIAL = {"epochs": 20, "learning_rate": 5e-4, "thaw": 1.0}
_HELP = {
    "data": "folder of photos, a .csv or .parquet of path, label and, if given, split, WebDataset "
    "shards (tar files, local or in a bucket), or a name: cats-vs-dogs, oxford-iiit-pet ...",
    "name": "name of the model",
    "out": "model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix",
    "datasets": "folder of data sets by name, downloaded if not there (default: the user's cache)",
    "backbone": "tiny, a classification model of torchvision by its name, or timm/<name>",
    "weights": '"imagenet", "none" or a state dict (.pth, .safetensors)',
    "size": "side of the square that the net sees, pixels (default: the backbone's own)",
    "interpolation": "bilinear, bicubic or lanczos (default: the backbone's own)",
    "seed": "of splits, initialisation and augmentation",
    "strict": "fail if any file has to be left out",
    "val_fraction": "share split off for val",
    "test_fraction": "share split off for test",
    "epochs": "of fine-tuning; 0: the linear head alone",
    "batch_size": "photos in a step",
    "learning_rate": "at its peak",
    "weight_decay": "of kernels (AdamW)",
    "warmup": "share of the steps in which the rate rises",
    "thaw": "share of the stages, from the last, that are fine-tuned",
    "views": "augmented views of a photo behind frozen stages; else each epoch has its own",
    "optimizer": "sgd, momentum, adagrad, rmsprop, adam or adamw",
    "schedule": "of the learning rate after warm-up: cosine, one-cycle or constant",
    "layer_decay": "a stage's learning rate over that of the stage after it",
    "gradual": "thaw one stage an epoch, from the last",
    "head_solver": "of the head on frozen features: lbfgs, sgd (steps of --optimizer), or none: "
    "fine-tuning starts from a head drawn at random",
    "head_init": "of a head that L-BFGS does not solve: uniform, normal, glorot or kaiming",
    "head_epochs": "of --head-solver sgd",
    "head_rate": "learning rate of --head-solver sgd at the start; 0: what suits the optimizer",
    "augment": "crop, standard (and colours), trivial (TrivialAugment) or rand (RandAugment)",
    "erasing": "how likely a rectangle of a picture is blacked",
    "mixup": "mix pictures; alpha of its Beta distribution, such as 0.2",
    "cutmix": "put a rectangle of one picture in another; alpha, such as 1",
    "label_smoothing": "share of each label that is spread over all, such as 0.1",
    "dropout": "share of features that the head does not see in a step",
    "balance": "of uneven classes: none, sampling (rare ones more often) or weights",
    "clip": "shorten gradients to this length, such as 1; 0: never",
    "ema": "publish a moving average of the weights, such as 0.999; 0: the last",
    "accumulate": "parts in which a batch is computed, where memory is short",
    "patience": "stop after so many epochs without a better one; 0: never",
    "wise_ft": "publish the best on val between probe and fine-tuned (WiSE-FT)",
    "teacher": "a version in the same repository to learn from (distillation)",
    "teacher_share": "of the loss that is the teacher's; the rest is the labels'",
    "teacher_temperature": "softens what both say, so that the teacher's doubts are heard",
    "amp": "mixed precision of training: fp32 (none), bf16 or fp16",
    "compile": "compile the net (torch.compile): worth it for long trainings on a GPU",
    "deterministic": "the same weights from the same seed on a GPU too, if slower",
    "logs": "folder for TensorBoard (default: .logs in the model repository)",
    "checkpoints": "folder for the state after each epoch, from which the same command goes on; or "
    "none (default: .checkpoints in the model repository)",
    "adversarial": "train against PGD of so many steps, or one (fast@4/255), of this size",
    "int8": "publish the model in 8-bit integers too, for CPUs",
    "fp16": "publish the model in 16-bit floats too, for GPUs",
    "max_accuracy_loss": "accuracy that int8 and fp16 may lose; else they are left out",
    "workers": "threads that decode photos (default: the cores that may be used)",
    "cache": "folder in which frozen features are kept for the next run",
}


@ends_when_interrupted(_INTERRUPTED)
def main(arguments: Sequence[str] | None = None) -> int:
    # Threads of OpenMP that wait must sleep, not spin: on a machine that does other work as well,
    # spinning was measured to make training six times slower. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = vars(_parser().parse_args(arguments))
    as_json, file = (flags.pop(name) for name in ("json", "config"))
    as_comparison, rate_only = (flags.pop(name) for name in ("compare", "find_rate"))
    trials = flags.pop("tune")
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    console = Console(to_stderr=as_json, silent=not leads)
    try:
        given = read_settings(flags, os.environ, file)
        config = with_defaults(given, console)
        if as_comparison:
            from trainer.compare import compare

            rows = compare({**given, "name": config.name}, with_defaults, console)
            if as_json and leads:
                print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
            return 0
        console.table("Configuration", _in_words(config, given))
        if rate_only:
            from trainer.rate_finder import find_rate

            found = find_rate(config, console)
            if as_json and leads:
                print(json.dumps(dataclasses.asdict(found), indent=2))
            return 0
        if trials is not None:
            from trainer.tune import tune

            config = tune(given, config, trials, console)
        from trainer.pipeline import train  # torch takes seconds to import; --help does not wait

        published = train(config, console)
    except PawprintError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FailedCheck) else 2
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        print(
            "error: the GPU has too little memory; end what else runs on it and run the same "
            "command, which goes on after the last epoch, or try a smaller --batch-size, --size or "
            "backbone",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return INTERRUPTED
    if published is None:
        return 0
    _summary(published, config, console)
    if as_json:
        print(json.dumps(_as_json(published), indent=2))
    return 0


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _in_words(config: TrainConfig, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = dataclasses.asdict(config)
    choices = {"name", "backbone", "size", "interpolation", "batch_size", "epochs", "workers"}
    chosen = choices - given.keys()
    return [(k, f"{v}  (chosen)" if k in chosen else str(v)) for k, v in values.items()]


def read_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> dict[str, Any]:
    """Settings from flags, then environment, then a TOML file.

    Raises InvalidRequest for an unknown key or a value of another type.
    """
    given = _from_file(file) if file else {}
    given |= _from_environment(environment)
    given |= flags
    return given


def with_defaults(given: Mapping[str, Any], console: Console | None = None) -> TrainConfig:
    """The settings given, and for the others what suits them. Raises InvalidRequest, InvalidData.

    The model is named after its folder of photos; backbone and epochs follow from the number of
    photos and the device, the batch size from the device and the size, the workers from the cores.
    """
    if "data" not in given:
        raise InvalidRequest("--data is required; see train --help")
    from trainer.auto import choose_batch_size, choose_workers

    defaults: dict[str, Any] = {"name": _name(given["data"])}
    if given.get("weights") == "none":
        defaults |= _FROM_SCRATCH
    elif given.get("adversarial"):
        defaults |= _ADVERSARIAL
    defaults |= _chosen({**given, **defaults}, console or Console(to_stderr=False, silent=True))
    if not {"size", "interpolation"} <= given.keys():
        from trainer.backbones import trained_input

        chosen = defaults.get("backbone", TrainConfig.backbone)
        trained = trained_input(given.get("backbone", chosen))
        defaults |= {"size": trained.size, "interpolation": trained.interpolation}
    if "batch_size" not in given:
        size = given.get("size", defaults.get("size"))
        defaults["batch_size"] = choose_batch_size(size, _gpu_bytes())
    if "workers" not in given:
        defaults["workers"] = choose_workers(os.environ)
    return TrainConfig(**{**defaults, **given})


def _name(data: str) -> str:
    """The folder's own, the table's or the shards', as far as a model may have it."""
    from trainer.shards import is_shards, shards_name

    if is_shards(data):
        name = shards_name(data)
    else:
        name = Path(data).resolve().name.removesuffix(".csv").removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _chosen(given: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """What trainer.auto chooses for these photos, of the settings that are not given."""
    wanted = {"backbone", "epochs"} - given.keys()
    if given.get("weights", "imagenet") not in ("imagenet", "none"):
        wanted.discard("backbone")  # the weights are those of one net
    if not wanted:
        return {}
    from trainer.auto import choose
    from trainer.listing import find_photos

    datasets = Path(given["datasets"]) if "datasets" in given else None
    photos = find_photos(given["data"], datasets, console.track)
    found = choose(len(photos), gpu=_gpu_bytes() is not None)
    return {name: found[name] for name in wanted}


def _gpu_bytes() -> int | None:
    """Memory of the GPU; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _kinds() -> dict[str, type]:
    """Setting -> str, int, float or bool."""
    kinds = get_type_hints(TrainConfig)
    return {name: str if kind == str | None else kind for name, kind in kinds.items()}


def _from_file(file: Path) -> dict[str, Any]:
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} can't be read as TOML: {error}") from error
    kinds = _kinds()
    for name, value in given.items():
        if name not in kinds:
            raise InvalidRequest(f"{file}: unknown setting {name!r}; known: {', '.join(kinds)}")
        if kinds[name] is float and type(value) is int:
            given[name] = float(value)
        elif type(value) is not kinds[name]:
            raise InvalidRequest(f"{file}: {name} must be {kinds[name].__name__}, got {value!r}")
    return given


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    kinds, given = _kinds(), {}
    for variable, text in environment.items():
        if not variable.startswith(_ENVIRONMENT):
            continue
        name = variable.removeprefix(_ENVIRONMENT).lower()
        if name not in kinds:
            raise InvalidRequest(f"unknown setting in the environment: {variable}")
        given[name] = _parse(text, kinds[name], variable)
    return given


def _parse(text: str, kind: type, where: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError) as error:
        raise InvalidRequest(f"{where} must be {kind.__name__}, got {text!r}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    kinds = _kinds()
    for field in dataclasses.fields(TrainConfig):
        flag, help_text = f"--{field.name.replace('_', '-')}", _HELP[field.name]
        if kinds[field.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
            continue
        own = ("size", "interpolation", "workers")  # the backbone's, the machine's
        if field.name not in own and field.default not in (dataclasses.MISSING, None):
            others = ((_FROM_SCRATCH, "from scratch"), (_ADVERSARIAL, "adversarial"))
            also = [f"; {d[field.name]:g} {name}" for d, name in others if field.name in d]
            help_text += f" (default: {field.default}{''.join(also)})"
        names = {"data": "DIR", "out": "DIR", "cache": "DIR", "adversarial": "pgd-3@4/255"}
        names |= {"checkpoints": "DIR", "logs": "DIR", "datasets": "DIR"}
        names |= {"teacher": "NAME[/VERSION]"}
        metavar = names.get(field.name, "VALUE")
        parser.add_argument(flag, type=kinds[field.name], metavar=metavar, help=help_text)
    parser.add_argument("--config", type=Path, default=None, metavar="FILE", help="TOML settings")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare",
        action="store_true",
        default=False,
        help="train in four ways: frozen, fine-tuned, full, from scratch; one table and plot",
    )
    instead.add_argument(
        "--find-rate",
        action="store_true",
        default=False,
        help="try learning rates for a hundred steps, suggest one, and publish nothing",
    )
    instead.add_argument(
        "--tune",
        type=int,
        default=None,
        metavar="N",
        help="try N settings in all on val (Optuna), then train with the best; goes on if stopped",
    )
    parser.add_argument("--json", action="store_true", default=False, help="result as JSON, stdout")
    return parser


def _summary(published: "Published", config: TrainConfig, console: Console) -> None:
    manifest = published.manifest
    metrics, parity = manifest.variants["fp32"].metrics, manifest.variants["fp32"].parity
    console.table(
        "Published",
        [
            ("version", published.place),
            ("trained", published.how),
            (
                "test accuracy",
                f"{metrics.accuracy:.4f}  ({metrics.correct} of {metrics.photos}; 95 % interval "
                f"{metrics.accuracy_low:.4f} to {metrics.accuracy_high:.4f})",
            ),
            ("calibration", f"ECE {metrics.ece:.4f}, temperature {manifest.temperature:.3f}"),
            (
                "ONNX - PyTorch",
                f"{parity.max_logit_error:.2g} in logits up to {parity.logit_scale:.3g}",
            ),
            ("latency", f"{manifest.variants['fp32'].latency_ms:.1f} ms a photo on this CPU"),
            *_other_precisions(manifest),
            ("time", f"{manifest.training_seconds:.0f} s"),
        ],
    )
    console.line(f"Serve it: serve --models {config.out}")


def _other_precisions(manifest: "Manifest") -> Iterator[tuple[str, str]]:
    fp32 = manifest.variants["fp32"]
    for precision in sorted(manifest.variants.keys() - {"fp32"}):
        variant = manifest.variants[precision]
        yield (
            precision,
            f"accuracy {variant.metrics.accuracy:.4f}, {variant.parity.top1_agreement:.1%} of "
            f"labels as in fp32, {variant.latency_ms:.1f} ms a photo on this CPU "
            f"({fp32.latency_ms / variant.latency_ms:.2f} times as fast)",
        )


def _as_json(published: "Published") -> dict[str, Any]:
    manifest = published.manifest
    variant = manifest.variants["fp32"]
    return {
        "path": published.place,
        "name": manifest.name,
        "version": manifest.version,
        "trained": published.how,
        "metrics": dataclasses.asdict(variant.metrics),
        "parity": dataclasses.asdict(variant.parity),
        "variants": {p: dataclasses.asdict(v) for p, v in manifest.variants.items()},
        "training_seconds": manifest.training_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())

"""The flags of `train`: one for each setting, and those of the command alone."""

import argparse
import dataclasses
from pathlib import Path

from serving.commandline import Parser, one_of
from serving.modelspec import INTERPOLATIONS
from trainer.config import (
    BALANCES,
    HEAD_INITS,
    HEAD_SOLVERS,
    OPTIMIZERS,
    POLICIES,
    PRECISIONS,
    SCHEDULES,
    TrainConfig,
)
from trainer.defaults import ADVERSARIAL, FROM_SCRATCH, WITHOUT_BATCH_NORM
from trainer.given import kinds_of_settings

_DESCRIPTION = """\
Train an image classifier on a folder of photos and publish it as the next version of a model.

DIR holds a folder for each class with its photos, or train/, val/ and test/ with such folders in
them. Where val or test is missing, it is held out of train, evenly over the classes. Every photo
is opened first: files that can't be read, and duplicates, are named and left out.

With pre-trained weights (--weights imagenet or a file) a linear head is solved on the frozen
backbone, and the last stages are then fine-tuned; what is best on val is kept. With --weights none
the whole net is trained from scratch. The test photos are measured through the exported ONNX file.

With --adversarial pgd-3@4/255 the whole net learns from photos that an attack has just changed.
Small perturbations then fool it less often, at a price in accuracy on photos as they are;
`analyze` measures both.
"""
_EPILOG = """\
examples:
  train --data photos                     # chooses the name and all else, and says what
  train --data oxford-iiit-pet            # downloads it, and takes its own split
  train --data 's3://bucket/photos-{000..031}.tar'    # WebDataset shards
  train --data photos --name pets --compare
  train --data photos --name pets --tune 30   # searches the settings that are not given
  train --data photos --name small-pets --backbone mobilenet_v3_small --teacher pets
  train --data photos --name pets --backbone resnet50 --epochs 0
  train --data photos --name pets --weights mobilenet_v2.pth
  train --data drawings --name drawings --backbone tiny --weights none
  train --data photos --name sturdy-pets --adversarial pgd-3@4/255

Every setting may also stand in the environment (PAWPRINT_TRAIN_EPOCHS=3) or in a TOML file that
--config names. A flag comes before the environment, and the environment before the file.

exit status:
    0  published
    1  a check failed; nothing is published
    2  wrong input, or a place that can't be used
   75  a trouble that may pass (a bucket, a download, a full disk): try again
  130  interrupted
With --compare the ways that were done before stay published.
"""
# Each setting: what a value looks like ("" for yes or no), and what it is; in the order of --help.
GROUPS = {
    "photos and model": {
        "data": (
            "DIR",
            "the photos: a folder; a .csv or .parquet of path, label and, if given, split; "
            "WebDataset shards (tar files, local or in a bucket); or the name of a data set: "
            "cats-vs-dogs, food101 ...",
        ),
        "name": ("NAME", "name of the model (default: that of the folder)"),
        "out": (
            "DIR",
            "model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix",
        ),
        "val_fraction": ("X", "share of the photos held out for val, if they bring no val"),
        "test_fraction": ("X", "share held out for test, if they bring no test"),
        "split_like": (
            "NAME[/VERSION]",
            "where photos are held out, those that this version of --out had stay in the splits "
            "that they had in it: what it was tested on is not learnt from",
        ),
        "strict": ("", "fail if any file has to be left out"),
        "drop_label_errors": (
            "",
            "learn from no photo whose label is probably wrong; such photos are named with or "
            "without it",
        ),
        "datasets": (
            "DIR",
            "folder of the data sets that are given by name, where they are downloaded "
            "(default: in the user's cache)",
        ),
        "seed": ("N", "seed of all random choices: splits, initialisation, augmentation"),
    },
    "net": {
        "backbone": (
            "NAME",
            "the net: tiny, the name of a classification model of torchvision, or timm/<name>",
        ),
        "weights": (
            "imagenet|none|FILE",
            "what the net starts from; none: from scratch; FILE: a state dict, or a checkpoint "
            "with one (.pth, .safetensors)",
        ),
        "size": (
            "PIXELS",
            "side of the square that the net sees (default: the backbone's own)",
        ),
        "interpolation": (
            one_of(INTERPOLATIONS),
            "how photos are resized to that square (default: the backbone's own)",
        ),
        "mirror": ("", "the net sees each photo and its mirror image, in twice the time"),
        "dropout": (
            "X",
            "share of features hidden from the head in a step (default: the backbone's own)",
        ),
    },
    "head on frozen features": {
        "head_solver": (
            one_of(HEAD_SOLVERS),
            "how the head is found; sgd: by steps of --optimizer; none: it is not, fine-tuning "
            "starts from a head drawn at random",
        ),
        "head_init": (one_of(HEAD_INITS), "how a head starts that L-BFGS does not solve"),
        "head_epochs": ("N", "passes over the features with --head-solver sgd"),
        "head_rate": (
            "X",
            "learning rate of --head-solver sgd at the start; 0: what suits the optimizer",
        ),
        "balance": (
            one_of(BALANCES),
            "how rare classes are made up for, also in fine-tuning; sampling: their photos are "
            "drawn more often; weights: their photos count more",
        ),
        "cache": (
            "DIR",
            "folder in which features and the exported backbone are kept for the next run",
        ),
    },
    "fine-tuning": {
        "epochs": ("N", "passes over the photos; 0: the linear head alone is published"),
        "batch_size": ("N", "photos in a step"),
        "learning_rate": ("X", "learning rate at its peak"),
        "schedule": (one_of(SCHEDULES), "course of the learning rate after the warm-up"),
        "warmup": ("X", "share of the steps in which the rate rises"),
        "optimizer": (one_of(OPTIMIZERS), "rule of the steps; momentum: SGD with momentum"),
        "weight_decay": ("X", "decay of kernels; biases and norms have none"),
        "thaw": ("X", "share of the stages, from the last, that are fine-tuned"),
        "gradual": ("", "thaw one stage an epoch, from the last"),
        "layer_decay": ("X", "a stage's learning rate over that of the stage after it"),
        "label_smoothing": (
            "X",
            "share of each label that is spread over all classes, such as 0.1",
        ),
        "clip": ("X", "shorten gradients to this length, such as 1; 0: never"),
        "ema": (
            "X",
            "publish a moving average of the weights, with this decay, such as 0.999; 0: no "
            "average",
        ),
        "wise_ft": (
            "",
            "publish what is best on val between the linear head and the fine-tuned net (WiSE-FT)",
        ),
        "patience": ("EPOCHS", "end after so many epochs without a better one; 0: never"),
        "accumulate": ("N", "compute each batch in so many parts, where memory is short"),
        "teacher": (
            "NAME[/VERSION]",
            "a version in the same repository to learn from (distillation)",
        ),
        "teacher_share": ("X", "share of the loss that is the teacher's; the rest is the labels'"),
        "teacher_temperature": (
            "X",
            "softens the answers of both, so that the teacher's doubts are heard",
        ),
        "adversarial": (
            "pgd-3@4/255",
            "train against an attack: so many steps of PGD, or one (fast@4/255), of this size",
        ),
    },
    "augmentation": {
        "augment": (
            one_of(POLICIES),
            "how pictures are varied; crop: crops and mirror images; standard: colours too; "
            "trivial: TrivialAugment; rand: RandAugment",
        ),
        "views": (
            "N",
            "augmented views of each photo behind frozen stages; without such stages each epoch "
            "has new ones",
        ),
        "erasing": ("X", "chance that a rectangle of a picture is blacked"),
        "mixup": ("ALPHA", "mix pictures; alpha of the Beta distribution, such as 0.2; 0: no"),
        "cutmix": (
            "ALPHA",
            "put a rectangle of one picture in another; alpha, such as 1; 0: no",
        ),
    },
    "what else is published": {
        "int8": ("", "also publish the model in 8-bit integers, for CPUs"),
        "fp16": ("", "also publish the model in 16-bit floats, for GPUs"),
        "max_accuracy_loss": (
            "X",
            "accuracy that such a file may lose; one that loses more is left out",
        ),
        "unfamiliar": (
            "SHARE",
            "share of ordinary photos that may be called unfamiliar; a larger one finds more of "
            "the pictures that show none of the classes",
        ),
    },
    "the run": {
        "workers": ("N", "threads that decode photos (default: the cores that may be used)"),
        "amp": (one_of(PRECISIONS), "mixed precision of training; fp32: none"),
        "compile": (
            "",
            "compile the net (torch.compile): worth it for long trainings on a GPU",
        ),
        "deterministic": ("", "the same weights from the same seed on a GPU too, if slower"),
        "checkpoints": (
            "DIR",
            "folder for the state after each epoch, from which the same command goes on; none: it "
            "is not kept (default: .checkpoints in the model repository)",
        ),
        "logs": (
            "DIR",
            "folder of the curves for TensorBoard (default: .logs in the model repository)",
        ),
    },
}
# In place of TrainConfig's defaults, where the photos or the device decide.
_CHOSEN = {
    "backbone": "chosen by the photos and the device",
    "epochs": "chosen by the number of photos",
    "batch_size": "32; on a GPU what its memory holds",
}
_OWN = ("size", "interpolation", "workers")  # their defaults are the backbone's, the machine's


def parser() -> argparse.ArgumentParser:
    flags = Parser(
        prog="train",
        usage="train --data DIR [--name NAME] [--compare | --find-rate | --tune N] [flags]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    kinds = kinds_of_settings()
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    flags.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="TOML file of settings"
    )
    flags.add_argument(
        "--json", action="store_true", default=False, help="print the result as JSON"
    )
    for title, settings in GROUPS.items():
        group = flags.add_argument_group(title)
        for name, (metavar, text) in settings.items():
            flag = f"--{name.replace('_', '-')}"
            if kinds[name] is bool:
                group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            else:
                if name not in _OWN and defaults[name] not in (dataclasses.MISSING, None):
                    default = _CHOSEN.get(name) or _plain(defaults[name])
                    text += f" (default: {default}{_elsewhere(name)})"
                group.add_argument(flag, type=kinds[name], metavar=metavar, help=text)
    instead = flags.add_argument_group("in place of one training").add_mutually_exclusive_group()
    instead.add_argument(
        "--compare",
        action="store_true",
        default=False,
        help="train in four ways (frozen, fine-tuned, full, from scratch), and compare them in a "
        "table and a plot",
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
        help="search settings in N trials, judged on val (Optuna), then train with the best; "
        "stopped, the same command goes on",
    )
    return flags


def _elsewhere(name: str) -> str:
    """The default where training does not start from a pre-trained net."""
    others = (
        (FROM_SCRATCH, "from scratch"),
        (WITHOUT_BATCH_NORM, "from scratch without batch norms"),
        (ADVERSARIAL, "with --adversarial"),
    )
    return "".join(f"; {d[name]:g} {how}" for d, how in others if name in d)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

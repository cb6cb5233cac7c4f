"""The flags of `train`: one for each setting, and those of the command alone."""

import argparse
import dataclasses
from pathlib import Path

from serving.commandline import Parser
from trainer.config import TrainConfig
from trainer.defaults import ADVERSARIAL, FROM_SCRATCH
from trainer.given import kinds_of_settings

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
be used, 75 a trouble that may pass (a bucket, a download, a full disk: try again), 130 interrupted;
with --compare the ways that came before stay published
"""
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
    "drop_label_errors": "learn from no photo whose label is probably wrong; all are named anyway",
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
    "dropout": "share of features hidden from the head in a step (default: the backbone's own)",
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
    "cache": "folder in which frozen features and the exported backbone are kept for the next run",
}


def parser() -> argparse.ArgumentParser:
    flags = Parser(
        prog="train",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    kinds = kinds_of_settings()
    for field in dataclasses.fields(TrainConfig):
        flag, help_text = f"--{field.name.replace('_', '-')}", _HELP[field.name]
        if kinds[field.name] is bool:
            flags.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
            continue
        own = ("size", "interpolation", "workers")  # the backbone's, the machine's
        if field.name not in own and field.default not in (dataclasses.MISSING, None):
            others = ((FROM_SCRATCH, "from scratch"), (ADVERSARIAL, "adversarial"))
            also = [f"; {d[field.name]:g} {name}" for d, name in others if field.name in d]
            help_text += f" (default: {field.default}{''.join(also)})"
        names = {"data": "DIR", "out": "DIR", "cache": "DIR", "adversarial": "pgd-3@4/255"}
        names |= {"checkpoints": "DIR", "logs": "DIR", "datasets": "DIR"}
        names |= {"teacher": "NAME[/VERSION]"}
        metavar = names.get(field.name, "VALUE")
        flags.add_argument(flag, type=kinds[field.name], metavar=metavar, help=help_text)
    flags.add_argument("--config", type=Path, default=None, metavar="FILE", help="TOML settings")
    instead = flags.add_mutually_exclusive_group()
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
    flags.add_argument("--json", action="store_true", default=False, help="result as JSON, stdout")
    return flags

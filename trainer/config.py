"""The settings of one training run, checked at construction and saved whole in the manifest."""

from dataclasses import dataclass, fields

from serving.errors import InvalidRequest, in_utf8
from serving.layout import check_name
from serving.modelspec import INTERPOLATIONS
from trainer.defence import parse_defence

# What the flags may be; kept here, so that --help need not load torch.
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw")
SCHEDULES = ("cosine", "one-cycle", "constant")
HEAD_SOLVERS = ("lbfgs", "sgd", "none")
HEAD_INITS = ("uniform", "normal", "glorot", "kaiming")
POLICIES = ("crop", "standard", "trivial", "rand")
BALANCES = ("none", "sampling", "weights")
PRECISIONS = ("fp32", "bf16", "fp16")
LARGEST_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Raises InvalidRequest, naming the setting with what was expected and what was given."""

    data: str  # folder of photos, a table of them, or a data set's name
    name: str  # of the model
    out: str = "models"  # the model repository
    datasets: str | None = None  # folder of data sets by name (None: in the user's cache)
    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"  # "imagenet", "none" or a file
    size: int = 224  # side of the square that the net sees, pixels
    interpolation: str = "bilinear"
    mirror: bool = False  # the net sees each photo and its mirror image, in twice the time
    seed: int = 0
    strict: bool = False  # fail if any file has to be left out
    drop_label_errors: bool = False  # learn from no photo whose label is probably wrong
    val_fraction: float = 0.15  # split off where no val folder is given
    test_fraction: float = 0.15  # split off where no test folder is given
    split_like: str | None = None  # a version in `out` whose photos stay in their splits
    epochs: int = 6  # of fine-tuning after the probe (0: the probe alone), or from scratch
    batch_size: int = 32
    learning_rate: float = 1e-4  # at its peak
    weight_decay: float = 1e-4  # of kernels; biases and normalisation layers have none
    warmup: float = 0.1  # share of the steps in which the rate rises
    thaw: float = 0.25  # share of the stages, from the last, that fine-tuning changes
    views: int = 4  # augmented views of a photo that frozen stages are run on; else any number
    optimizer: str = "adamw"
    schedule: str = "cosine"
    layer_decay: float = 1.0  # a stage's learning rate over that of the stage after it
    gradual: bool = False  # stages thaw one an epoch, from the last
    head_solver: str = "lbfgs"  # of the head on frozen features; none: it is drawn, no probe
    head_init: str = "uniform"  # of a head that L-BFGS does not solve
    head_epochs: int = 50  # of head_solver sgd
    head_rate: float = 0.0  # of head_solver sgd, at the start; 0: what suits the optimizer
    augment: str = "standard"
    erasing: float = 0.0  # how likely a rectangle of a picture is blacked
    mixup: float = 0.0  # alpha of its Beta distribution; 0: none
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    dropout: float | None = None  # directly before the head; None: the backbone's own there
    balance: str = "none"  # of uneven classes
    clip: float = 0.0  # longest gradient; 0: any
    ema: float = 0.0  # decay of a moving average of the weights; 0: none
    accumulate: int = 1  # parts in which a batch is computed, of two photos or more
    patience: int = 0  # epochs without a better one after which training ends; 0: never
    wise_ft: bool = False  # the best on val between probe and fine-tuned
    teacher: str | None = None  # a version in `out` to learn from: NAME or NAME/VERSION
    teacher_share: float = 0.9  # of the loss, the rest is the labels'
    teacher_temperature: float = 4.0  # by which the logits of both are divided
    amp: str = "fp32"
    compile: bool = False
    deterministic: bool = False
    logs: str | None = None  # folder for TensorBoard (None: .logs in `out`)
    checkpoints: str | None = None  # folder for the state after each epoch (None: in `out`)
    adversarial: str | None = None  # train against this adversary, such as pgd-3@4/255
    int8: bool = False  # publish the model in 8-bit integers too
    fp16: bool = False  # and in 16-bit floats
    max_accuracy_loss: float = 0.01  # that these may have against fp32
    unfamiliar: float = 0.01  # share of ordinary photos that may be called so
    workers: int = 2  # threads that decode
    cache: str | None = None  # folder in which frozen features are kept for the next run

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value == "":  # as of a variable that is not set
                raise InvalidRequest(f"{field.name} must not be empty")
            if isinstance(value, str):  # the manifest is to have it
                in_utf8(field.name, value)
        check_name(self.name)
        _check("interpolation", self.interpolation, INTERPOLATIONS)
        _range("size", self.size, 32, 1024)
        _range("seed", self.seed, 0, 2**31 - 1)
        _range("val_fraction", self.val_fraction, 0.01, 0.5)
        _range("test_fraction", self.test_fraction, 0.01, 0.5)
        if self.val_fraction + self.test_fraction >= 1:
            raise InvalidRequest(
                f"val_fraction {self.val_fraction:g} and test_fraction {self.test_fraction:g} "
                "leave nothing to train on; lower one, or leave it out where the photos bring that "
                "split"
            )
        _range("epochs", self.epochs, 0, 10_000)
        _range("batch_size", self.batch_size, 2, LARGEST_BATCH)
        _range("learning_rate", self.learning_rate, 1e-8, 10.0)
        _range("weight_decay", self.weight_decay, 0.0, 1.0)
        _range("warmup", self.warmup, 0.0, 0.9)
        _range("thaw", self.thaw, 0.0, 1.0)
        _range("views", self.views, 1, 1000)
        _check("optimizer", self.optimizer, OPTIMIZERS)
        _check("schedule", self.schedule, SCHEDULES)
        _check("head_solver", self.head_solver, HEAD_SOLVERS)
        _check("head_init", self.head_init, HEAD_INITS)
        _range("head_epochs", self.head_epochs, 1, 10_000)
        _range("head_rate", self.head_rate, 0.0, 100.0)
        _check("augment", self.augment, POLICIES)
        _check("balance", self.balance, BALANCES)
        _check("amp", self.amp, PRECISIONS)
        _range("layer_decay", self.layer_decay, 0.01, 1.0)
        _range("erasing", self.erasing, 0.0, 1.0)
        _range("mixup", self.mixup, 0.0, 10.0)
        _range("cutmix", self.cutmix, 0.0, 10.0)
        _range("label_smoothing", self.label_smoothing, 0.0, 0.9)
        _range("dropout", self.dropout or 0.0, 0.0, 0.95)
        _range("clip", self.clip, 0.0, 1e6)
        _range("ema", self.ema, 0.0, 0.99999)
        _range("accumulate", self.accumulate, 1, self.batch_size // 2)
        _range("patience", self.patience, 0, 10_000)
        _range("max_accuracy_loss", self.max_accuracy_loss, 0.0, 1.0)
        _range("unfamiliar", self.unfamiliar, 0.0, 0.5)
        _range("workers", self.workers, 1, 64)
        if self.epochs == 0 and not self.probes:
            what = "weights" if self.weights == "none" else "head_solver"
            raise InvalidRequest(f"epochs must be at least 1 with {what} none, got 0")
        if self.wise_ft and (self.adversarial or not self.probes):
            raise InvalidRequest(
                "wise_ft needs a probe to start from: not with weights none, head_solver none or "
                "adversarial"
            )
        if self.drop_label_errors and not self.probes:
            raise InvalidRequest(
                "drop_label_errors needs a probe to find them: not with weights none or "
                "head_solver none"
            )
        _range("teacher_share", self.teacher_share, 0.0, 1.0)
        _range("teacher_temperature", self.teacher_temperature, 0.1, 100.0)
        if self.teacher is not None:
            if self.adversarial or self.mixup or self.cutmix:
                raise InvalidRequest(
                    "a teacher says what it sees in the photos as they are: not with adversarial, "
                    "mixup or cutmix"
                )
            if self.epochs == 0:
                raise InvalidRequest("epochs must be at least 1 with a teacher, got 0")
        if self.adversarial is not None:
            parse_defence(self.adversarial)
            if self.epochs == 0:
                raise InvalidRequest("epochs must be at least 1 with adversarial, got 0")

    @property
    def probes(self) -> bool:
        """Whether a head is solved on frozen features first."""
        return self.weights != "none" and self.head_solver != "none"


def _range(setting: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # nan is in no range
        got = f"{value:g}" if isinstance(value, float) else value  # an int may be beyond all floats
        raise InvalidRequest(f"{setting} must be {low:g} to {high:g}, got {got}")


def _check(setting: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequest(f"{setting} must be one of {', '.join(allowed)}, got {value!r}")

"""Settings that somebody gave, but which can't act with the others of the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.config import TrainConfig

_FINE_TUNING = (
    *("learning_rate", "weight_decay", "warmup", "thaw", "views", "schedule", "layer_decay"),
    *("gradual", "augment", "erasing", "mixup", "cutmix", "label_smoothing", "dropout", "clip"),
    *("ema", "accumulate", "patience", "wise_ft", "amp", "compile", "checkpoints"),
)
_STEPS_OF_HEAD = ("head_epochs", "head_rate")
_BEYOND_RATES = (
    *("learning_rate", "warmup", "schedule", "gradual", "ema", "wise_ft", "patience"),
    *("checkpoints", "logs", "int8", "fp16", "max_accuracy_loss", "unfamiliar"),
)

# Which can't act, when, and why.
_IDLE: tuple[tuple[tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    (_FINE_TUNING, lambda c: c.epochs == 0, "--epochs 0 trains the head alone"),
    (
        ("optimizer", "batch_size"),
        lambda c: c.epochs == 0 and c.head_solver == "lbfgs",
        "L-BFGS takes no batches, and --epochs 0 trains the head alone",
    ),
    (
        ("head_solver", *_STEPS_OF_HEAD),
        lambda c: c.weights == "none",
        "with --weights none no head is solved first",
    ),
    (("cache",), lambda c: not c.probes, "only a head that is solved first needs features"),
    (_STEPS_OF_HEAD, lambda c: c.head_solver != "sgd", "of --head-solver sgd alone"),
    (("head_init",), lambda c: c.probes and c.head_solver == "lbfgs", "L-BFGS solves the head"),
    (("gradual", "layer_decay"), lambda c: c.thaw == 0, "with --thaw 0 no stage learns"),
    (("views",), lambda c: c.adversarial is not None, "--adversarial always changes the photos"),
    (("views",), lambda c: c.thaw == 1, "with --thaw 1 no stage is frozen"),
    (("patience",), lambda c: c.patience >= c.epochs, "the run has no more epochs than that"),
    (("teacher_share", "teacher_temperature"), lambda c: c.teacher is None, "without --teacher"),
    (
        ("label_smoothing",),
        lambda c: c.teacher is not None and c.teacher_share == 1,
        "--teacher-share 1 hears no label",
    ),
    (("teacher_temperature",), lambda c: c.teacher_share == 0, "--teacher-share 0: it isn't heard"),
    (("max_accuracy_loss",), lambda c: not c.int8 and not c.fp16, "without --int8 and --fp16"),
)


def idle(
    given: Mapping[str, Any], configs: Sequence[TrainConfig], *, rate_only: bool = False
) -> str | None:
    """One line on those of `given` that act in none of these runs; None where there are none.

    They are no mistake: a file of settings may serve several runs. One that is given as its own
    default asks for nothing. rate_only: of a search for a learning rate.
    """
    first, *others = (_reasons(config, rate_only=rate_only) for config in configs)
    found: dict[str, list[str]] = {}
    for name, why in first.items():
        asked = name in given and given[name] != getattr(TrainConfig, name)
        if asked and all(name in other for other in others):
            found.setdefault(why, []).append(f"--{name.replace('_', '-')}")
    if not found:
        return None
    said = "; ".join(f"{', '.join(flags)} ({why})" for why, flags in found.items())
    return f"These settings have no part in this run: {said}"


def _reasons(config: TrainConfig, *, rate_only: bool = False) -> dict[str, str]:
    """Setting that can't act -> why."""
    found: dict[str, str] = {}
    if rate_only:
        found = dict.fromkeys(_BEYOND_RATES, "--find-rate tries rates, and publishes nothing")
    for names, when, why in _IDLE:
        if when(config):
            found |= {name: why for name in names if name not in found}
    return found

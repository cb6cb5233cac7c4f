"""What a hyperparameter search tries: of the settings that matter most, those that nobody gave."""

from collections.abc import Mapping
from typing import Any, Protocol

from trainer.config import TrainConfig

_STEEP = 30  # SGD's rate over that of Adam and its kin
_RATES = (1e-5, 1e-2)  # of Adam
_PRETRAINED_ONLY = ("thaw", "layer_decay")  # from scratch everything learns alike


class Trial(Protocol):
    """Optuna's, as far as it is used."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


_LOG: dict[str, tuple[float, float]] = {"learning_rate": _RATES, "weight_decay": (1e-6, 0.1)}
_LINEAR: dict[str, tuple[float, float]] = {"layer_decay": (0.5, 1.0), "label_smoothing": (0.0, 0.2)}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adamw", "momentum"),
    "thaw": (0.25, 0.5, 1.0),
    "mixup": (0.0, 0.2, 0.8),
    "augment": ("crop", "standard", "trivial"),
}


def searched(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings to search: not those given, nor what the others rule out."""
    fixed = set(given)
    if given.get("weights") == "none":
        fixed |= {*_PRETRAINED_ONLY}
    if given.get("head_solver") == "sgd":
        fixed.add("optimizer")  # the probe, which all trials start from, was solved by it
    if given.get("teacher"):
        fixed.add("mixup")
    return tuple(name for name in (*_LOG, *_LINEAR, *_CHOICES) if name not in fixed)


def draw(trial: Trial, names: tuple[str, ...], config: TrainConfig) -> dict[str, Any]:
    """Values of `names`, as settings; `config` has the others."""
    found: dict[str, Any] = {}
    for name in names:
        if name in _CHOICES:
            found[name] = trial.suggest_categorical(name, _CHOICES[name])
        else:
            log = name in _LOG
            low, high = _LOG[name] if log else _LINEAR[name]
            found[name] = trial.suggest_float(name, low, high, log=log)
    if "learning_rate" in found and _is_steep(found.get("optimizer", config.optimizer)):
        found["learning_rate"] *= _STEEP
    return found


def start(names: tuple[str, ...], config: TrainConfig) -> dict[str, Any]:
    """The first trial: the defaults, as far as the space has them."""
    found = {name: getattr(config, name) for name in names}
    if "learning_rate" in found:
        rate = config.learning_rate / (_STEEP if _is_steep(config.optimizer) else 1)
        found["learning_rate"] = min(max(rate, _RATES[0]), _RATES[1])
    return found


def _is_steep(optimizer: str) -> bool:
    return optimizer in ("sgd", "momentum")

"""What runs in place of one training (--compare, --find-rate, --tune), and what does not suit it.

Said by the settings given alone, before torch is imported or a data set is downloaded.
"""

import os
from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidRequest, lacks
from trainer.config import TrainConfig
from trainer.ranks import place_of
from trainer.search_space import searched


def require_comparable(given: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for what not all four ways of --compare can have."""
    for name in ("teacher", "adversarial", "wise_ft", "drop_label_errors"):
        if given.get(name):
            flag = name.replace("_", "-")
            raise InvalidRequest(f"--compare can't be given --{flag}, which not all four ways have")
    if given.get("head_solver") == "none":
        raise InvalidRequest("--compare can't be given --head-solver none: one way is a head alone")
    if given.get("epochs") == 0:
        raise InvalidRequest("--compare needs --epochs of at least 1: three of its ways fine-tune")
    if given.get("weights", TrainConfig.weights) == "none":
        raise InvalidRequest("--compare needs pre-trained weights; give --weights imagenet or FILE")


def require_rates(given: Mapping[str, Any]) -> None:
    """Raises InvalidRequest where --find-rate has nothing to look at."""
    if given.get("epochs") == 0:
        raise InvalidRequest("epochs must be at least 1 to look for a learning rate, got 0")


def require_search(given: Mapping[str, Any], trials: int) -> None:
    """Raises InvalidRequest for what does not go with --tune, and where Optuna is not there."""
    if not 1 <= trials <= 10_000:
        raise InvalidRequest(f"--tune must be 1 to 10000 trials, got {trials}")
    if given.get("epochs") == 0:
        raise InvalidRequest("epochs must be at least 1 for --tune, got 0")
    if given.get("adversarial"):
        raise InvalidRequest("--tune looks at the accuracy on clean photos: not with adversarial")
    if (place_of(os.environ) or (0, 1))[1] > 1:
        raise InvalidRequest("--tune runs in one process; leave out torchrun")
    if not searched(given):
        raise InvalidRequest("every setting that --tune searches is given; leave some out")
    import_optuna()


def import_optuna() -> Any:
    """The package, silenced. Raises InvalidRequest where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InvalidRequest(lacks("--tune", "optuna", error, "tune")) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna

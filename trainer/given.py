"""What the user has set: by flags, in the environment, in a TOML file."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from serving.errors import InvalidRequest
from trainer.config import TrainConfig

_ENVIRONMENT = "PAWPRINT_TRAIN_"
_PLACES = ("data", "out", "datasets", "weights", "logs", "checkpoints", "cache")


def read_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> dict[str, Any]:
    """Settings from flags, then environment, then a TOML file.

    ~ at the beginning of a path is the user's folder, which a shell says only of a word by itself.
    Raises InvalidRequest for an unknown key or a value of another type.
    """
    given = _from_file(file) if file else {}
    given |= _from_environment(environment)
    given |= flags
    return given | {name: os.path.expanduser(given[name]) for name in _PLACES if name in given}


def kinds_of_settings() -> dict[str, type]:
    """Setting -> str, int, float or bool."""
    kinds = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(TrainConfig).items()}
    return {name: next(k for k in given if k is not NoneType) for name, given in kinds.items()}


def _from_file(file: Path) -> dict[str, Any]:
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} can't be read as TOML: {error}") from error
    kinds = kinds_of_settings()
    for name, value in given.items():
        if name not in kinds:
            raise InvalidRequest(f"{file}: unknown setting {name!r}; known: {', '.join(kinds)}")
        if kinds[name] is float and type(value) is int:
            given[name] = float(str(value))  # too large for one it is inf, as a flag's would be
        elif type(value) is not kinds[name]:
            raise InvalidRequest(f"{file}: {name} must be {kinds[name].__name__}, got {value!r}")
        elif "\0" in str(value):
            raise InvalidRequest(f"{file}: {name} holds a NUL character")
    return given


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    kinds, given = kinds_of_settings(), {}
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

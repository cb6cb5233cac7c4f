"""How a setting of `serve` is declared and checked."""

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Any

from serving.errors import InvalidRequest

ON_OFF = ("on", "off")


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def check_ranges(settings: object, ranges: Iterable[tuple[str, float, float]]) -> None:
    """Raises InvalidRequest naming the first field that is not within (low, high)."""
    for name, low, high in ranges:
        if not low <= getattr(settings, name) <= high:
            raise InvalidRequest(f"{name} must be {low} to {high}, got {getattr(settings, name)}")


def check_choice(settings: object, name: str, choices: Sequence[str]) -> None:
    """Raises InvalidRequest."""
    if getattr(settings, name) not in choices:
        raise InvalidRequest(
            f"{name} must be one of {', '.join(choices)}, got {getattr(settings, name)!r}"
        )

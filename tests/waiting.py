"""Waits for what a process of its own does."""

import time
from collections.abc import Callable
from pathlib import Path

WITHIN_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def until_said(log: Path, words: str, times: int = 1, after: int = 0) -> None:
    """Until a log has the words so often, beyond its first `after` characters."""
    deadline = time.monotonic() + WITHIN_S
    while (said := log.read_text()).count(words, after) < times:
        assert time.monotonic() < deadline, f"{words!r} was not said {times} times: {said}"
        time.sleep(0.02)

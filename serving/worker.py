"""What one of several processes that share a port knows of itself; see serving.workers."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from serving.settings import ServerSettings

INDEX = "PAWPRINT_WORKER"
SETTINGS = "PAWPRINT_WORKER_SETTINGS"
# What the parent is told of so often, from the loading on.
BEAT_S = 1.0
ANSWERS, CAN_NOT_ANSWER = b"+", b"-"


def worker_index() -> int | None:
    """0, 1, ... in a worker; None in a server that is the only one on its port."""
    text = os.environ.get(INDEX)
    return None if text is None else int(text)


def told_settings() -> ServerSettings | None:
    """What a worker begins with, whatever stands in the configuration by then: what the others
    have. None in a server that is the only one on its port."""
    text = os.environ.get(SETTINGS)
    return None if text is None else ServerSettings(**json.loads(text))


def when_parent_ends(ended: Callable[[], None]) -> None:
    """Call `ended` once the parent is gone, however it went: its end of our stdin closes then."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 1024):
            loop.remove_reader(descriptor)
            ended()

    loop.add_reader(descriptor, readable)


def tell_parent(answers: Callable[[], bool]) -> None:
    """From now on tell the parent again and again that this event loop runs, and what `answers`
    says: whether calls can be answered."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdout.fileno()

    def beat() -> None:
        os.set_blocking(descriptor, False)  # for this alone: the line of `announce` may be long
        with suppress(OSError):  # one that is stopped does not read, one that is gone never will
            os.write(descriptor, ANSWERS if answers() else CAN_NOT_ANSWER)
        os.set_blocking(descriptor, True)
        loop.call_later(BEAT_S, beat)

    beat()

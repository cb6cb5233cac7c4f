"""Threads that compute: all there from the start, and behind the event loop where cores are few."""

import os
import sys
import threading
from collections.abc import Callable

from serving.errors import Unavailable

# A third of the event loop's weight, in Linux's scheduler.
_NICER = 5


def computing_threads(name: str, count: int, loop: Callable[[], None]) -> list[threading.Thread]:
    """`count` threads that run `loop`, started. Raises Unavailable where there can't be so many:
    that is better known now than with a call."""

    def run() -> None:
        _go_behind_the_event_loop()
        loop()

    threads = [threading.Thread(target=run, name=f"{name}-{i}", daemon=True) for i in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise Unavailable(
            f"{count} threads for {name} can't be had ({error}): allow this user or container "
            "more, or set cores and decode_threads lower"
        ) from error
    return threads


def _go_behind_the_event_loop() -> None:
    """Each call needs the loop for a fraction of a millisecond only, but under overload that is
    what answers the refusals: on two cores, as one of five threads that want them, it fell seconds
    behind (benchmarks/overload.py). Elsewhere than on Linux this would be of the whole process.
    """
    if sys.platform == "linux":
        os.nice(_NICER)

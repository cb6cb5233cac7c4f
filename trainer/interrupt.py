"""Ctrl-C that always ends the process."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

INTERRUPTED = 130  # exit status: 128 + SIGINT
_GRACE = 5.0  # seconds to leave in order


@contextmanager
def ends_when_interrupted(last_words: str) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as ever; a process still there after 5 s says `last_words`
    on stderr and ends with status 130. May be used as a decorator.

    KeyboardInterrupt strikes between any two steps of the interpreter: within threading.Condition
    it leaves the lock taken, and a queue or a future that is waited for on the way out (such as
    TensorBoard's) never comes; within a callback of C it is swallowed and the work goes on.
    """

    def end() -> Never:
        print(last_words, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    def strike(*_: object) -> Never:
        timer = threading.Timer(_GRACE, end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may handle
        yield
        return
    previous = signal.signal(signal.SIGINT, strike)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

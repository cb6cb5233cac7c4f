"""Ctrl-C that always ends the process."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Never

INTERRUPTED = 130  # exit status: 128 + SIGINT
_GRACE = 5.0  # seconds to leave in order
_AGAIN = 0.05  # seconds in which a callback that has swallowed it ends


@contextmanager
def ends_when_interrupted(last_words: str) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as ever; a process still there after 5 s says `last_words`
    on stderr and ends with status 130. May be used as a decorator.

    KeyboardInterrupt strikes between any two steps of the interpreter: within threading.Condition
    it leaves the lock taken, and a queue or a future that is waited for on the way out (such as
    TensorBoard's) never comes; within a callback, as of a weak reference, Python drops it with a
    traceback: then it is raised once more. Within one of C it is swallowed and the work goes on.
    """

    def end() -> Never:
        print(last_words, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    def strike(*_: object) -> Never:
        timer = threading.Timer(_GRACE, end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    hook = sys.unraisablehook

    def dropped(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)
            return
        timer = threading.Timer(_AGAIN, _thread.interrupt_main)  # in here it would be dropped too
        timer.daemon = True
        timer.start()

    if threading.current_thread() is not threading.main_thread():  # only that one may handle
        yield
        return
    previous = signal.signal(signal.SIGINT, strike)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, previous)

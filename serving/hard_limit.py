"""A stop has an end: what is not over by then is left behind.

A photo that is being decoded, a model that is being loaded, a download: none of them can be cut
short, and the interpreter would wait for their threads.
"""

import asyncio
import logging
import os
import signal
import threading

log = logging.getLogger(__name__)

# What threads, sockets and traces have once no call is answered any more.
CLOSING_S = 5.0


def leave_within(seconds: float) -> None:
    """If the process is still there by then, end it, with status 0."""
    timer = threading.Timer(seconds, _leave, (seconds,))  # the event loop may be what hangs
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as error:
        log.warning("the stop has no end of its own: %s", error)


def end_whatever_is_signalled() -> None:
    """What is left to do ends by itself, and with the status that it has: another SIGTERM would be
    that status, once the event loop has no handlers any more."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _leave(seconds: float) -> None:
    log.warning("not all is over %g s after the signal: the process ends all the same", seconds)
    logging.shutdown()
    os._exit(0)

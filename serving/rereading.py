"""SIGHUP: the configuration is read again, and taken over as far as it can be."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from serving.errors import PawprintError
from serving.settings import ServerSettings

log = logging.getLogger(__name__)


def hang_ups() -> asyncio.Event:
    """Set at each SIGHUP, those that came while the command began too."""
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    let_through()
    return hung_up


def let_through() -> None:
    """The SIGHUPs that the command has held back since it began."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


async def follow(
    hung_up: asyncio.Event,
    reread: Callable[[], ServerSettings],
    take_over: Callable[[ServerSettings], Awaitable[None]],
) -> None:
    """At each SIGHUP, read the configuration again; one that is wrong changes nothing."""
    while True:
        await hung_up.wait()
        hung_up.clear()
        try:
            await take_over(reread())
        except PawprintError as error:
            log.error("the configuration stays as it was: %s", error)
        except Exception:  # a defect of ours must not end this
            log.exception("unexpected error while the configuration was taken over")

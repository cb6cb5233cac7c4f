"""How a server says that it is ready: the port file, and one line on stdout."""

import logging
import os
import select
import sys
from pathlib import Path

from serving.channel import host_port
from serving.errors import Unavailable
from serving.paths import exists, is_dir, is_file
from serving.settings import ServerSettings

log = logging.getLogger(__name__)

STDOUT = 1
PATIENCE_S = 1.0


def check_port_file(settings: ServerSettings) -> None:
    """Raises Unavailable where it is known already that there can be none."""
    if not settings.port_file:
        return
    path = Path(settings.port_file)
    try:
        if not is_dir(path.parent):
            raise Unavailable(f"the port file can't be written: there is no folder {path.parent}")
        if is_dir(path):
            raise Unavailable(f"the port file can't be written: {path} is a folder")
        # It is removed and made anew: /dev/stdout, or a device, would be gone for everyone.
        if path.is_symlink() or (exists(path) and not is_file(path)):
            raise Unavailable(f"the port file can't be written: {path} is there, and is no file")
    except OSError as error:
        raise Unavailable(f"the port file can't be written: {error}") from error


def withdraw(settings: ServerSettings) -> None:
    """Remove the port file that an earlier server has left. Raises Unavailable."""
    check_port_file(settings)
    if settings.port_file:
        try:
            Path(settings.port_file).unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"the old port file can't be removed: {error}") from error


def announce(settings: ServerSettings, port: int, served: str) -> None:
    """Write the port file, whose appearance means ready, and say where, and what is served.

    Raises Unavailable if either can't be written.
    """
    if settings.port_file:
        path = Path(settings.port_file)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(f"{port}\n")
            os.replace(part, path)
        except OSError as error:
            raise Unavailable(f"the port file can't be written: {error}") from error
    line = f"serving on {host_port(settings.host, port)}: {served}"
    if not _has_room():  # a pipe that was full before we were started, and that nobody reads
        log.warning("stdout takes nothing, so here: %s", line)
        return
    try:
        print(line, flush=True)
    except OSError as error:  # what is left in the buffer would be tried again at the exit
        sys.stdout = None
        raise Unavailable(f"stdout can't be written: {error}") from error


def _has_room() -> bool:
    """Whether writing to stdout does not block, within PATIENCE_S."""
    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    return bool(poll.poll(1e3 * PATIENCE_S))

"""The command `serve`: a server in the foreground, until a signal ends it."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from serving.catalogue import Catalogue
from serving.commandline import fail
from serving.cores import usable_cores
from serving.device import cuda_problem
from serving.errors import NotFound, PawprintError, Unavailable
from serving.log_format import configure_logging
from serving.server import Server
from serving.settings import ServerSettings, read_settings

log = logging.getLogger(__name__)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises what Server.open and Server.load raise."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = Server(settings)
    try:
        port = await server.open()
        stop = asyncio.ensure_future(stopped.wait())
        loading = asyncio.ensure_future(server.load())
        await asyncio.wait({stop, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            announce(settings, port, loading.result())
            await stop
            log.info("stopping: running calls may finish within %g s", settings.drain_s)
            await server.drain()
        else:
            loading.cancel()
    finally:
        await server.close()
    log.info("stopped")


def announce(settings: ServerSettings, port: int, catalogue: Catalogue) -> None:
    """Write the port file, whose appearance means ready, and one line on stdout: where, and what.

    Raises Unavailable if the port file can't be written.
    """
    if settings.port_file:
        path = Path(settings.port_file)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(f"{port}\n")
            os.replace(part, path)
        except OSError as error:
            raise Unavailable(f"the port file can't be written: {error}") from error
    served = [
        f"{name}/{version}"
        for name, model in catalogue.models.items()
        for version in model.versions
    ]
    print(f"serving on {settings.host}:{port}: {', '.join(served)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        settings = read_settings(arguments, os.environ)
        configure_logging(settings.log_format)
        problem = cuda_problem() if settings.device != "cpu" else None
        if settings.device == "auto":
            log.info("device: %s", f"cpu, for {problem}" if problem else "cuda")
        log.info(
            "%d usable cores: %d threads infer, %d decode",
            usable_cores(),
            settings.inference_threads,
            settings.decoders,
        )
        asyncio.run(serve(settings))
    except NotFound as error:
        fail(str(error), status=1)
    except PawprintError as error:
        fail(str(error))


if __name__ == "__main__":
    main()

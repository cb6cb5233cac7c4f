"""The command `serve`: a server in the foreground, until a signal ends it."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.serve())

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

import uvloop

from serving.announcement import announce, check_port_file, withdraw
from serving.catalogue import Catalogue
from serving.commandline import fail, reader_may_leave
from serving.cores import usable_cores
from serving.device import cuda_problem
from serving.errors import NotFound, PawprintError
from serving.hard_limit import CLOSING_S, end_whatever_is_signalled, leave_within
from serving.listening import can_not_listen, obstacle
from serving.log_format import configure_logging
from serving.rereading import follow, hang_ups, let_through
from serving.server import Server
from serving.settings import EVERY_NETWORK, ServerSettings, asks_check, read_settings
from serving.tls import ShownCertificate
from serving.visible import visible
from serving.worker import tell_parent, told_settings, when_parent_ends, worker_index
from serving.workers import supervise

log = logging.getLogger(__name__)


async def serve(settings: ServerSettings, reread: Callable[[], ServerSettings]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP takes over what `reread` returns.

    Raises what Server.open and Server.load raise.
    """
    loop = asyncio.get_running_loop()
    stopped, hung_up = asyncio.Event(), hang_ups()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = Server(settings)
    if worker_index() is not None:
        when_parent_ends(stopped.set)
        tell_parent(lambda: server.ready)
    try:
        stop = asyncio.ensure_future(stopped.wait())
        beginning = asyncio.ensure_future(begin(server))
        await asyncio.wait({stop, beginning}, return_when=asyncio.FIRST_COMPLETED)
        if beginning.done():
            port, catalogue = beginning.result()
            announce(settings, port, described(catalogue))
            following = asyncio.ensure_future(follow(hung_up, reread, server.reconfigure))
            await stop
            following.cancel()
            log.info("stopping: running calls may finish within %g s", server.drain_s)
            leave_within(server.drain_s + CLOSING_S)
            await server.drain()
        else:
            leave_within(CLOSING_S)
            beginning.cancel()
    finally:
        await server.close()
    log.info("stopped")
    end_whatever_is_signalled()


async def begin(server: Server) -> tuple[int, Catalogue]:
    """Listen and load. One of several processes loads first: what connects to it meanwhile would be
    refused, where the others could answer. Raises what both raise."""
    if worker_index() is None:
        return await server.open(), await server.load()
    catalogue = await server.load()
    return await server.open(), catalogue


async def check(settings: ServerSettings) -> bool:
    """Whether `serve` would serve all that these settings ask for; says what it would, and not.

    Loads and proves it, and listens nowhere: a server may be there. Raises what Server.load raises,
    InvalidRequest, Unavailable for an address that is not one of this machine, or a port file that
    can't be written.
    """
    if settings.tls_files:
        ShownCertificate(settings.tls_files)
    check_port_file(settings)
    for name, host, port in settings.places:
        asked_for = (name == "port" or port) and host not in EVERY_NETWORK
        if asked_for and (why := obstacle(host, 0)):
            raise can_not_listen(host, port, why)
    server = Server(settings)
    try:
        await server.load()
        states, problems = server.control.states(), server.control.problems()
        remarks = server.control.remarks()
    finally:
        await server.close()
    for state in states:
        where = f" on {state.device} in {state.precision}" if state.device else ""
        aliases = f" ({', '.join(state.aliases)})" if state.aliases else ""
        reason = f": {state.reason}" if state.reason else ""
        print(visible(f"{state.model}/{state.version}{aliases}: {state.state}{where}{reason}"))
    for line in (*problems, *remarks):
        print(visible(line))
    return not problems and all(state.state == "serving" for state in states)


def described(catalogue: Catalogue) -> str:
    return ", ".join(
        f"{name}/{version} ({loaded.engine.precision} on {loaded.engine.device})"
        for name, model in catalogue.models.items()
        for version, loaded in model.versions.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        settings = told_settings() or read_settings(arguments, os.environ)
        configure_logging(settings.log_format, worker_index())
        problem = cuda_problem() if settings.device != "cpu" else None
        if settings.device == "auto":
            log.info("device: %s", f"cpu, for {problem}" if problem else "cuda")
        too_many = settings.inference_cores > usable_cores()  # by a quota: the kernel holds us up
        log.log(
            logging.WARNING if too_many else logging.INFO,
            "%d usable cores: %d run models on the CPU, %d threads decode",
            usable_cores(),
            settings.inference_cores,
            settings.decoders,
        )
        if asks_check(arguments):
            let_through()
            with reader_may_leave():
                sys.exit(0 if asyncio.run(check(settings)) else 1)
        withdraw(settings)
        if settings.workers > 1:
            given = sys.argv[1:] if arguments is None else arguments
            sys.exit(asyncio.run(supervise(settings, given)))
        # asyncio's own loop takes a quarter more time for each call: benchmarks/README.md.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, lambda: read_settings(arguments, os.environ, again=True)))
    except NotFound as error:
        fail(str(error), status=1)
    except PawprintError as error:
        fail(str(error))

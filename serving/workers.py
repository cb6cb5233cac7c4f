"""`serve --workers N`: processes that share a port, and the parent that starts them again.

Each is a whole server with an interpreter of its own. The kernel deals out connections, not calls
(SO_REUSEPORT): a connection stays with its process.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serving.announcement import announce
from serving.cores import usable_cores
from serving.errors import BrokenVersion, NotFound, Unavailable
from serving.hard_limit import CLOSING_S, end_whatever_is_signalled, leave_within
from serving.listening import can_not_listen
from serving.metrics_server import MetricsServer
from serving.model_control import check_only
from serving.rereading import follow, hang_ups
from serving.settings import ServerSettings, differing, read_settings, taken_over
from serving.storage import open_repository
from serving.tls import ShownCertificate
from serving.tokens import read_tokens
from serving.worker import ANSWERS, BEAT_S, CAN_NOT_ANSWER, INDEX, SETTINGS
from serving.worker_metrics import LOOPBACK, WorkerMetrics

log = logging.getLogger(__name__)

# Until a dead worker is started again, the more the oftener it died; the last one ever after.
RESTART_WAITS_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
# One that lived so long counts as sound again.
SOUND_AFTER_S = 60.0
# One that is silent at so many looks in a row, or says that it can't answer while others can, is
# replaced. However busy it is, or whatever it loads, its event loop never stands still so long.
PATIENCE = 30
# Until it is heard for the first time it may be silent at so many: its modules may come from a disk
# that is slow.
FIRST_PATIENCE = 300
# One that still lives so long after its own hard limit is killed.
MARGIN_S = 3.0


@dataclass(kw_only=True)
class Plan:
    """What each worker is told beyond what the parent was."""

    arguments: Sequence[str]
    port: int
    settings: ServerSettings  # as those that run have them now

    def own(self, index: int) -> dict[str, str | int]:
        """The settings that a worker never reads for itself."""
        settings = self.settings
        share = share_of(usable_cores(), settings.workers, index)
        return {
            "workers": 1,
            "port": self.port,
            "port_file": "",
            "cores": settings.cores or share,
            "decode_threads": settings.decode_threads or share,
            "metrics_host": LOOPBACK,  # the parent gathers them, and tells others
            "metrics_port": settings.metrics_port and settings.metrics_port + 1 + index,
        }

    def command(self, index: int) -> list[str]:
        own = self.own(index)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
        # -P: what lies in the folder that we were started in is not for a worker to import.
        return [sys.executable, "-P", "-m", "serving.serve", *self.arguments, *flags]

    def environment(self, index: int) -> dict[str, str]:
        settings = replace(self.settings, **self.own(index))  # type: ignore[arg-type]
        return {
            **os.environ,
            INDEX: str(index),
            SETTINGS: json.dumps(asdict(settings)),
            "PYTHONPATH": os.pathsep.join(sys.path),  # it finds the very modules that we did
        }


def share_of(cores: int, workers: int, index: int) -> int:
    """Of the cores, at least 1; what is left over once they are dealt out goes to the first."""
    return max(1, (cores + workers - 1 - index) // workers)


class Worker:
    """One of the processes, and those that follow it."""

    def __init__(self, index: int, plan: Plan) -> None:
        self._index = index
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None
        self._serves = False
        self._hung_up = False  # while it did not serve yet
        self.answers = False  # as it said last

    async def start(self) -> str:
        """Returns what the worker says once it serves; "" if it ended before that, or hung.

        Raises Unavailable if there can be no process now.
        """
        self._serves = False
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._plan.command(self._index),
                stdin=asyncio.subprocess.PIPE,  # closed by our end, however it comes: its end too
                stdout=asyncio.subprocess.PIPE,
                env=self._plan.environment(self._index),
                process_group=0,  # a terminal's signals are for the parent to pass on
            )
        except OSError as error:
            raise Unavailable(f"worker {self._index} can't be started: {error}") from error
        line = await self._line()
        self._serves = bool(line)
        if self._serves and self._hung_up:
            self._hung_up = False
            self.signal(signal.SIGHUP)
        return line

    async def _line(self) -> str:
        """What it says after the beats of its loading. One that hangs meanwhile is killed."""
        said, silent = b"", 0
        while b"\n" not in said:
            heard = await self._said(within_s=BEAT_S)
            if heard == b"":
                return ""
            said += heard or b""
            silent = 0 if heard else silent + 1
            if silent == (PATIENCE if said else FIRST_PATIENCE):
                self._kill_silent(silent)
        return said.partition(b"\n")[0].decode().lstrip((ANSWERS + CAN_NOT_ANSWER).decode())

    async def ended(self) -> int:
        """Its exit status."""
        assert self._process is not None
        return await self._process.wait()

    async def keep(self, workers: Sequence["Worker"]) -> None:
        """Start it again whenever it dies, or has to, until this is cancelled. workers: all."""
        deaths, since = 0, time.monotonic()
        while True:
            watching = asyncio.ensure_future(self._watch(workers))
            try:
                status = await self.ended()
            finally:
                watching.cancel()
            self.answers = False
            deaths = 1 if time.monotonic() - since > SOUND_AFTER_S else deaths + 1
            wait_s = RESTART_WAITS_S[min(deaths, len(RESTART_WAITS_S)) - 1]
            log.error(
                "worker %d ended with status %d; started again in %g s", self._index, status, wait_s
            )
            await asyncio.sleep(wait_s)
            since = time.monotonic()
            try:
                if await self.start():
                    log.info("worker %d serves again", self._index)
            except Unavailable as error:  # the one before has ended: the next wait follows
                log.error("%s", error)

    async def _watch(self, workers: Sequence["Worker"]) -> None:
        """End it once it hangs, or can't answer where others can; it gets connections all the same.

        Looks are counted, not time: nobody could speak while the machine slept, or was heard while
        we were stopped.
        """
        silent = unfit = 0
        while max(silent, unfit) < PATIENCE:
            await asyncio.sleep(BEAT_S)
            said = await self._said(within_s=0) or b""  # what is there already
            self.answers = said.endswith(ANSWERS)
            silent = 0 if said else silent + 1
            if self.answers:
                unfit = 0
            elif said and any(worker.answers for worker in workers):
                unfit += 1
        if silent:
            self._kill_silent(silent)
        else:
            for_s = PATIENCE * BEAT_S
            log.error(
                "worker %d can't answer, as others can, for %g s: it ends", self._index, for_s
            )
            await self.stop(longest_stop_s(self._plan.settings.drain_s))

    def _kill_silent(self, looks: int) -> None:
        for_s = looks * BEAT_S
        log.error("worker %d hangs: silent for %g s, it is killed", self._index, for_s)
        self.signal(signal.SIGKILL)

    async def _said(self, *, within_s: float) -> bytes | None:
        """Since it was last asked; None for nothing, b"" where it has ended."""
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                return await self._process.stdout.read(2**16)
        except TimeoutError:
            return None

    def signal(self, number: int) -> None:
        """SIGHUP waits until it serves: before, it would end it."""
        if number == signal.SIGHUP and not self._serves:
            self._hung_up = True
            return
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, within_s: float) -> None:
        """Let it end, or kill it then."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
                await self.ended()
        except TimeoutError:
            log.error("worker %d does not end within %g s: it is killed", self._index, within_s)
            self.signal(signal.SIGKILL)
            await self.ended()


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers, and takes no connections itself.

    Raises Unavailable if it can't be had, or if another server listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as alone:  # would share with nobody
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
        shared = socket.socket(family, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError as error:
        raise can_not_listen(host, port, error) from error
    return shared


async def supervise(settings: ServerSettings, arguments: Sequence[str]) -> int:
    """Serve with settings.workers processes until SIGTERM or SIGINT; returns the exit status.

    If one of them can't start at all, none is kept, and its status is returned: it has said why.
    Raises Unavailable if the port, or a process, can't be had, or one is killed before it serves;
    InvalidRequest if the files of TLS or of tokens can't be used.
    """
    check_files(settings)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    drain_s = settings.drain_s  # the longest that a worker may have been told
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # Workers have it from us: to a terminal with `stty tostop` they are of the background.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with reserve(settings.host, settings.port) as reserved, gathered_metrics(settings):
        port = int(reserved.getsockname()[1])
        plan = Plan(arguments=arguments, port=port, settings=settings)
        workers = [Worker(index, plan) for index in range(settings.workers)]

        def reread() -> ServerSettings:
            return read_settings(arguments, os.environ, again=True)

        async def take_over(read: ServerSettings) -> None:
            """Workers would not see what is wrong with, or new in, a setting that they are told."""
            nonlocal drain_s
            live, fixed = differing(plan.settings, read)
            taken = taken_over(plan.settings, read)
            if {"only", "versions"} & {*live}:  # one started again would not find it, and end
                await asyncio.to_thread(check_models, taken)
            if changed := [name for name in fixed if name in plan.own(0)]:
                log.warning("only a restart changes: %s", ", ".join(changed))
            plan.settings = taken
            drain_s = max(drain_s, taken.drain_s)
            for worker in workers:
                worker.signal(signal.SIGHUP)

        def suspend() -> None:
            """Ctrl-Z: all stand still, and go on together, as one process would."""
            for worker in workers:
                worker.signal(signal.SIGSTOP)
            loop.remove_signal_handler(signal.SIGTSTP)
            os.kill(os.getpid(), signal.SIGTSTP)  # returns once we are continued
            loop.add_signal_handler(signal.SIGTSTP, suspend)
            for worker in workers:
                worker.signal(signal.SIGCONT)

        hung_up = hang_ups()
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        stop = asyncio.ensure_future(stopped.wait())
        tending: asyncio.Future[Any] = asyncio.ensure_future(_start(workers))
        try:
            await _first(tending, stop)
            if stopped.is_set():
                return 0
            lines = tending.result()
            if not all(lines):
                return await _failed(lines.index(""), workers)
            announce(settings, port, f"{lines[0].partition(': ')[2]}; {len(workers)} workers")
            tending = asyncio.ensure_future(
                _keep(workers, beside=follow(hung_up, reread, take_over))
            )
            await _first(tending, stop)
            if tending.done():
                tending.result()  # raises: a defect of ours
            return 0
        finally:
            tending.cancel()
            await asyncio.wait({tending})
            within_s = longest_stop_s(drain_s)
            await asyncio.gather(*(worker.stop(within_s) for worker in workers))
            leave_within(CLOSING_S)  # a look at a bucket that take_over began may last longer
            end_whatever_is_signalled()


def longest_stop_s(drain_s: float) -> float:
    return drain_s + CLOSING_S + MARGIN_S


def check_files(settings: ServerSettings) -> None:
    """Raises InvalidRequest where each of the workers would, after it has loaded."""
    if settings.tls_files:
        ShownCertificate(settings.tls_files)
    if settings.tokens:
        read_tokens(Path(settings.tokens))


def check_models(settings: ServerSettings) -> None:
    """Raises NotFound if a model that the settings ask for is not there, or none has a version that
    they ask for."""
    with suppress(OSError, Unavailable, BrokenVersion):  # to be said by the workers
        repository = open_repository(settings.models)
        names = repository.stamps().keys()
        check_only(settings, names)
        policy = settings.policy
        if policy.newest or settings.canary or settings.shadow:  # which have versions of their own
            return
        for name in settings.model_names or names:
            if policy.numbers.intersection(repository.versions(name)) or repository.aliases(name):
                return
        raise NotFound(f"versions is {settings.versions}, and no model has any of these")


async def _start(workers: Sequence[Worker]) -> list[str]:
    return await asyncio.gather(*(worker.start() for worker in workers))


async def _keep(workers: Sequence[Worker], *, beside: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(beside, *(worker.keep(workers) for worker in workers))


async def _failed(index: int, workers: Sequence[Worker]) -> int:
    """The status of a worker that ended before it served. Raises Unavailable for one that was
    killed, as where memory is short: it has said nothing."""
    status = await workers[index].ended()
    if status <= 0:
        raise Unavailable(f"worker {index} ended with status {status} before it served")
    return status


async def _first(*either: asyncio.Future[Any]) -> None:
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)


@contextmanager
def gathered_metrics(settings: ServerSettings) -> Iterator[None]:
    """All workers' metrics under the one port that is set; none without. Raises Unavailable."""
    if not settings.metrics_port:
        yield
        return
    metrics = WorkerMetrics([settings.metrics_port + 1 + i for i in range(settings.workers)])
    registry = CollectorRegistry()
    registry.register(metrics)
    with MetricsServer(settings.metrics_host, settings.metrics_port, registry, metrics.ready):
        yield

"""Requests in, batches out, for one model. Knows neither gRPC nor ONNX Runtime.

A call is admitted for all its photos before the first is decoded, so that a full server refuses at
once instead of after the work. Each decoded photo is put in; the inference thread takes batches out
as soon as it is free. Callers take turns, photo by photo, so that one caller's 64 photos do not
hold up another's one.

When to start a batch: at once if the thread is idle and no admitted photo is still being decoded,
for then nothing could be gained by waiting. While the thread is busy the next batch gathers by
itself. Only where more photos are known to be on their way does an idle thread wait for them, for
at most `max_delay_s`, or until the batch is full.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import DeadlineExceeded, Overloaded
from serving.inference_thread import InferenceThread, Work

Array = npt.NDArray[Any]
Run = Callable[[Array], Sequence[Array]]  # [n, ...] -> outputs, each with n rows


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    max_batch: int  # photos
    max_delay_s: float
    max_queue: int  # photos of all calls that are admitted and not yet answered

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be 1 or more, got {self.max_batch}")
        if not 0 <= self.max_delay_s <= 10:
            raise ValueError(f"max_delay_s must be 0 to 10 seconds, got {self.max_delay_s}")
        if self.max_queue < self.max_batch:
            raise ValueError(
                f"max_queue must be max_batch ({self.max_batch}) or more, got {self.max_queue}"
            )


@dataclass(frozen=True, kw_only=True)
class Answer:
    outputs: tuple[Array, ...]  # this photo's row of each output
    queue_s: float  # from put to the start of its batch
    run_s: float  # of its batch
    batch_size: int


class Call:
    """The place of one call in the queue; a context manager, which gives the place back.

    Leaving it drops what is not answered yet: a cancelled caller's photos are never run, unless
    their batch is already running, and then only their own answers are thrown away.
    """

    def __init__(self, batcher: "Batcher", photos: int, deadline: float, caller: Hashable) -> None:
        self._batcher = batcher
        self._unused = photos  # admitted and not yet put
        self.photos = photos
        self.deadline = deadline
        self.caller = caller
        self._futures: list[asyncio.Future[Answer]] = []
        self._closed = False

    def put(self, photo: Array) -> "asyncio.Future[Answer]":
        """Queue one decoded photo, on the event loop. The future raises DeadlineExceeded if the
        deadline passes before its batch starts, and whatever `run` raised."""
        assert self._unused > 0 and not self._closed
        self._unused -= 1
        self._futures.append(self._batcher._put(self, photo))
        return self._futures[-1]

    def skip(self) -> None:
        """One photo of the call will not come."""
        assert self._unused > 0 and not self._closed
        self._unused -= 1
        self._batcher._skip()

    def __enter__(self) -> "Call":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._closed = True
        self._batcher._leave(self, self._unused)
        for future in self._futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen: asyncio would log one that nobody awaited


@dataclass(frozen=True, eq=False)
class _Waiting:
    call: Call
    photo: Array
    future: "asyncio.Future[Answer]"
    since: float


class Batcher:
    """Its methods and those of its calls belong to the event loop that it was made on."""

    def __init__(self, run: Run, settings: BatchSettings, thread: InferenceThread) -> None:
        self._run_model = run
        self._settings = settings
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        # Guarded by the thread's lock:
        self._lines: dict[Hashable, deque[_Waiting]] = {}  # caller -> photos; first has its turn
        self._waiting = 0  # photos in all lines
        self._coming = 0  # photos admitted and not yet put
        self._gathering_since = math.inf
        # Of the event loop alone:
        self._admitted = 0  # photos
        thread.add(self)

    def admit(self, photos: int, *, deadline: float = math.inf, caller: Hashable = None) -> Call:
        """A place for `photos` photos. deadline: on the monotonic clock. Calls of the same `caller`
        share one turn; None is a caller of its own. Raises Overloaded, DeadlineExceeded."""
        if deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the call was begun")
        free = self._settings.max_queue - self._admitted
        if photos > free:
            raise Overloaded(
                f"the queue is full: {photos} photos asked for, {free} of "
                f"{self._settings.max_queue} places free; try again later"
            )
        call = Call(self, photos, deadline, object() if caller is None else caller)
        self._admitted += photos
        with self._thread.changed:
            self._coming += photos
        return call

    # --- called by Call, on the event loop

    def _put(self, call: Call, photo: Array) -> "asyncio.Future[Answer]":
        waiting = _Waiting(call, photo, self._loop.create_future(), time.monotonic())
        with self._thread.changed:
            self._coming -= 1
            self._waiting += 1
            self._gathering_since = min(self._gathering_since, waiting.since)
            self._lines.setdefault(call.caller, deque()).append(waiting)
            self._thread.changed.notify()
        return waiting.future

    def _skip(self) -> None:
        with self._thread.changed:
            self._coming -= 1
            self._thread.changed.notify()

    def _leave(self, call: Call, unused: int) -> None:
        self._admitted -= call.photos
        with self._thread.changed:
            self._coming -= unused
            line = self._lines.get(call.caller, deque())
            kept = deque(waiting for waiting in line if waiting.call is not call)
            self._waiting -= len(line) - len(kept)
            if kept:
                self._lines[call.caller] = kept  # in its old place: its turn is not lost
            else:
                self._lines.pop(call.caller, None)
            if self._waiting == 0:
                self._gathering_since = math.inf
            self._thread.changed.notify()

    # --- called by the inference thread, its lock held

    def due(self) -> float:
        if self._waiting == 0:
            return math.inf
        if self._waiting >= self._settings.max_batch or self._coming == 0:
            return -math.inf
        return self._gathering_since + self._settings.max_delay_s

    def take(self) -> Work:
        now = time.monotonic()
        batch: list[_Waiting] = []
        late: list[_Waiting] = []
        while self._lines and len(batch) < self._settings.max_batch:
            caller = next(iter(self._lines))
            line = self._lines.pop(caller)
            waiting = line.popleft()
            if line:
                self._lines[caller] = line  # to the end: the next caller has its turn
            (batch if waiting.call.deadline > now else late).append(waiting)
            self._waiting -= 1
        if self._waiting == 0:
            self._gathering_since = math.inf
        return lambda: self._run(batch, late)

    # --- on the inference thread, without the lock

    def _run(self, batch: list[_Waiting], late: list[_Waiting]) -> None:
        start = time.monotonic()
        results: list[Answer | BaseException]
        try:
            outputs = self._run_model(np.stack([w.photo for w in batch])) if batch else ()
            run_s = time.monotonic() - start
            results = [
                Answer(
                    outputs=tuple(output[i] for output in outputs),
                    queue_s=start - waiting.since,
                    run_s=run_s,
                    batch_size=len(batch),
                )
                for i, waiting in enumerate(batch)
            ]
        except Exception as error:  # goes to every caller of the batch; the thread lives on
            results = [error] * len(batch)
        results += [DeadlineExceeded("the deadline passed in the queue") for _ in late]
        self._loop.call_soon_threadsafe(_deliver, [*batch, *late], results)


def _deliver(answered: list[_Waiting], results: list[Answer | BaseException]) -> None:
    for waiting, result in zip(answered, results, strict=True):
        if waiting.future.done():  # its caller has gone; the others must have their answers
            continue
        if isinstance(result, BaseException):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)

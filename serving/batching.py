"""Requests in, batches out, for one model. Knows neither gRPC nor ONNX Runtime.

A call is admitted for all its photos before the first is decoded, so that a full server refuses at
once instead of after the work. Each decoded photo is put in; inference threads take batches out as
soon as they are free: each takes its share of what waits, so that no other one stands idle. Callers
take turns, photo by photo, so that one caller's 64 photos do not hold up another's one. Work of low
priority takes what the rest leaves, and a small share always.

When to start a batch: at once if a thread is idle and no admitted photo is still being decoded, for
then nothing could be gained by waiting. While all threads are busy the next batch gathers by
itself. Only where more photos are known to be on their way does an idle thread wait for them, for
at most `max_delay_s`, or until the batch is full.
"""

import asyncio
import enum
import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import DeadlineExceeded, Overloaded
from serving.inference_thread import InferenceThreads, Work
from serving.turns import Turns

# So that low priority never stands still: at least one photo in so many, while any waits.
LOW_EVERY = 16
# A full server is not asked again sooner, even where batches take no time; nor much later, for
# not all that were refused come back.
RETRY_AFTER_AT_LEAST_S, RETRY_AFTER_AT_MOST_S = 0.05, 60.0
_SMOOTHING = 0.2  # weight of the newest batch in the running estimate of seconds per photo

Array = npt.NDArray[Any]
# [n, ...] -> outputs, each with n rows; and whether it runs alone, with all the cores to itself
Run = Callable[[Array, bool], Sequence[Array]]


class Priority(enum.IntEnum):
    HIGH = 0
    LOW = 1


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    max_batch: int  # photos
    max_delay_s: float
    # Photos of all calls that are admitted and not yet answered; with low priority at most half.
    max_queue: int
    # The sizes that are run, ascending: a batch is filled up with zeros to the next. (): any size.
    sizes: tuple[int, ...] = ()

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
    """The places of one call in the queue; a context manager, which gives them back.

    Leaving it drops what is not answered yet: a cancelled caller's photos are never run, unless
    their batch is already running, and then only their own answers are thrown away.
    """

    def __init__(
        self,
        batcher: "Batcher",
        photos: int,
        deadline: float,
        caller: Hashable,
        priority: Priority,
    ) -> None:
        self._batcher = batcher
        self.photos = photos
        self.deadline = deadline
        self.caller = caller
        self.priority = priority
        self._places: list[Place] = []
        # Guarded by the lock of the inference threads:
        self._coming = photos  # admitted, and neither filled nor failed
        self.left = False

    def place(self) -> "Place":
        """Of the next photo. To be called on the event loop."""
        assert len(self._places) < self.photos and not self.left
        self._places.append(Place(self))
        return self._places[-1]

    def __enter__(self) -> "Call":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._batcher._leave(self)
        places, self._places = self._places, []  # no cycle is left that only the collector ends
        for place in places:
            if not place.answer.cancel() and not place.answer.cancelled():
                place.answer.exception()  # seen: asyncio would log one that nobody awaited


class Place:
    """One photo's, to be filled or failed once, from any thread; after its call has left it is
    neither.

    `answer` raises DeadlineExceeded if the deadline passes before the batch of the photo starts,
    whatever `run` raised, or what the place failed with.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.answer: asyncio.Future[Answer] = call._batcher._loop.create_future()

    def fill(self, photo: Array) -> None:
        """With the decoded photo."""
        self.call._batcher._put(self, photo)

    def fail(self, error: Exception) -> None:
        """The photo will not come."""
        self.call._batcher._fail(self, error)


@dataclass(frozen=True, eq=False)
class _Waiting:
    place: Place
    photo: Array
    since: float


class Batcher:
    """Its methods and those of its calls belong to the event loop that it was made on; those of
    their places to any thread.

    The inference threads know it only while a call is admitted: one that is let go ends with its
    last call.
    """

    def __init__(self, run: Run, settings: BatchSettings, threads: InferenceThreads) -> None:
        self._run_model = run
        self._settings = settings
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        # Guarded by the thread's lock:
        self._turns: tuple[Turns[_Waiting], ...] = tuple(Turns() for _ in Priority)
        self._since_low = 0  # photos of high priority taken since the last of low priority
        self._coming = 0  # photos admitted, their places neither filled nor failed
        self._gathering_since = math.inf
        # Of the event loop alone:
        self._admitted = 0  # photos
        self._admitted_low = 0  # of them of low priority
        self._promised = -math.inf  # when the last refused call was told to come back
        # Written by the inference threads: seconds per photo of all of them together, when busy
        self._photo_s = 0.0

    def admit(
        self,
        photos: int,
        *,
        deadline: float = math.inf,
        caller: Hashable = None,
        priority: Priority = Priority.HIGH,
    ) -> Call:
        """A place for `photos` photos. deadline: on the monotonic clock. Calls of the same `caller`
        share one turn; None is a caller of its own.

        Raises Overloaded if the queue is full, or so long that the deadline would pass in it;
        DeadlineExceeded if it has passed.
        """
        now = time.monotonic()
        if deadline <= now:
            raise DeadlineExceeded("the deadline passed before the call was begun")
        free = self._free(priority)
        if photos > free:
            raise Overloaded(
                f"the queue is full: {photos} photos asked for, {free} of "
                f"{self._settings.max_queue} places free; try again later",
                retry_after_s=self._promise(photos),
            )
        if self._admitted * self._photo_s >= deadline - now - photos * self._photo_s:
            self._refuse_hopeless(photos, priority, deadline - now)
        call = Call(self, photos, deadline, object() if caller is None else caller, priority)
        with self._threads.changed:
            if self._admitted == 0:
                self._threads.add(self)
            self._coming += photos
        self._admitted += photos
        if priority is Priority.LOW:
            self._admitted_low += photos
        return call

    @property
    def waiting(self) -> int:
        """Photos that are decoded and not yet in a batch."""
        return sum(map(len, self._turns))

    @property
    def admitted(self) -> int:
        """Photos that are admitted and not yet answered."""
        return self._admitted

    def _free(self, priority: Priority) -> int:
        free = self._settings.max_queue - self._admitted
        if priority is Priority.LOW and self._admitted_low:  # the first call may have any size
            free = min(free, self._settings.max_queue // 2 - self._admitted_low)
        return max(0, free)

    def _drained_in_s(self) -> float:
        return max(RETRY_AFTER_AT_LEAST_S, self._admitted * self._photo_s)

    def _promise(self, photos: int) -> float:
        """Seconds after which a call that found the queue full should come back.

        Each is told a time of its own, one after another as fast as photos are answered, the first
        when the queue is half empty. Were all told the same, most would be refused again and again,
        and refusals in such numbers take the time that answers need.
        """
        now = time.monotonic()
        next_free = max(self._promised, now + self._drained_in_s() / 2) + photos * self._photo_s
        self._promised = min(next_free, now + RETRY_AFTER_AT_MOST_S)
        return max(RETRY_AFTER_AT_LEAST_S, self._promised - now)

    def _refuse_hopeless(self, photos: int, priority: Priority, left_s: float) -> None:
        """Raises Overloaded if what waits now would take longer than the caller does.

        Where nothing waits the call is tried, whatever the estimate: only runs can correct it.
        """
        with self._threads.changed:
            high, low = self._turns
            if priority is Priority.HIGH:
                ahead = high.ahead_of(photos)
            else:
                ahead = len(high) + low.ahead_of(photos)
        wait_s = (ahead + photos) * self._photo_s
        if ahead and wait_s > left_s:
            raise Overloaded(
                f"the answer would come in {wait_s:.2g} s, after the deadline of the call in "
                f"{left_s:.2g} s; try again later, or with more time",
                retry_after_s=self._drained_in_s(),
            )

    # --- called by Place, on any thread

    def _put(self, place: Place, photo: Array) -> None:
        waiting = _Waiting(place, photo, time.monotonic())
        with self._threads.changed:
            if self._came(place.call):
                self._gathering_since = min(self._gathering_since, waiting.since)
                self._turns[place.call.priority].put(place.call.caller, waiting)

    def _fail(self, place: Place, error: Exception) -> None:
        with self._threads.changed:
            there = self._came(place.call)
        if there:
            self._loop.call_soon_threadsafe(_deliver, [place], [error])

    def _came(self, call: Call) -> bool:
        """One photo less to wait for, unless its call has left; the lock is held."""
        if not call.left:
            call._coming -= 1
            self._coming -= 1
            self._threads.changed.notify()
        return not call.left

    # --- called by Call, on the event loop

    def _leave(self, call: Call) -> None:
        self._admitted -= call.photos
        if call.priority is Priority.LOW:
            self._admitted_low -= call.photos
        with self._threads.changed:
            call.left = True
            self._coming -= call._coming
            self._turns[call.priority].drop(call.caller, lambda waiting: waiting.place.call is call)
            if not any(self._turns):
                self._gathering_since = math.inf
            if self._admitted == 0:
                self._threads.remove(self)
            self._threads.changed.notify()

    # --- called by an inference thread, the lock held

    def due(self) -> float:
        high, low = self._turns
        waiting = len(high) + len(low)
        if waiting == 0:
            return math.inf
        if waiting >= self._settings.max_batch or self._coming == 0:
            return -math.inf
        return self._gathering_since + self._settings.max_delay_s

    def take(self, idle: int, running: int) -> Work:
        now = time.monotonic()
        batch: list[_Waiting] = []
        late: list[_Waiting] = []
        high, low = self._turns
        share = min(self._settings.max_batch, math.ceil((len(high) + len(low)) / idle))
        while (high or low) and len(batch) < share:
            if high and not (low and self._since_low >= LOW_EVERY - 1):
                waiting = high.pop()
                self._since_low += 1
            else:
                waiting = low.pop()
                self._since_low = 0
            (batch if waiting.place.call.deadline > now else late).append(waiting)
        if not (high or low):
            self._gathering_since = math.inf
        alone = running == 0 and not (high or low)
        return lambda: self._run(batch, late, alone)

    # --- on an inference thread, without the lock

    def _run(
        self, batch: list[_Waiting], late: list[_Waiting], alone: bool
    ) -> Callable[[], object]:
        start = time.monotonic()
        results: list[Answer | BaseException]
        try:
            outputs = self._run_model(self._stack(batch), alone) if batch else ()
            run_s = time.monotonic() - start
            self._learn(len(batch), run_s if alone else run_s / self._threads.count)
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
        results += [too_late() for _ in late]
        places = [waiting.place for waiting in (*batch, *late)]
        return partial(self._loop.call_soon_threadsafe, _deliver, places, results)

    def _stack(self, batch: list[_Waiting]) -> Array:
        photos = [waiting.photo for waiting in batch]
        size = next((size for size in self._settings.sizes if size >= len(batch)), len(batch))
        if size == len(batch):
            return np.stack(photos)
        padded = np.zeros((size, *photos[0].shape), photos[0].dtype)
        np.stack(photos, out=padded[: len(batch)])
        return padded

    def _learn(self, photos: int, run_s: float) -> None:
        """A small batch costs more per photo than those of a busy server: it may only lower it."""
        if photos and (photos * 2 >= self._settings.max_batch or run_s < photos * self._photo_s):
            weight = _SMOOTHING if self._photo_s else 1.0
            self._photo_s += weight * (run_s / photos - self._photo_s)


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed in the queue")


def _deliver(places: Sequence[Place], results: Sequence[Answer | BaseException]) -> None:
    for place, result in zip(places, results, strict=True):
        if place.answer.done():  # its caller has gone; the others must have their answers
            continue
        if isinstance(result, BaseException):
            place.answer.set_exception(result)
        else:
            place.answer.set_result(result)

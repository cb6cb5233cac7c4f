"""Requests in, batches out, for one model. Knows neither gRPC nor ONNX Runtime.

A call is admitted for all its photos before the first is decoded, so that a full server refuses at
once instead of after the work; a request of a stream waits, as little more is read of it meanwhile.
Each decoded photo is put in; inference threads take batches out as soon as they are free: each
takes its share of what waits, so that no other one stands idle. Callers take turns, photo by photo,
so that one caller's 64 photos do not hold up another's one. Work of low priority takes what the
rest leaves, and a small share always.

When to start a batch: at once if a thread is idle and no admitted photo is still being decoded, for
then nothing could be gained by waiting. While all threads are busy the next batch gathers by
itself. Only where more photos are known to be on their way does an idle thread wait for them, for
at most `max_delay_s`, or until the batch is full.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.admission import Admission
from serving.errors import DeadlineExceeded, PawprintError
from serving.inference_thread import InferenceThreads, Work
from serving.turns import Priority, PriorityTurns, Turns

Array = npt.NDArray[Any]
# [n, ...] -> outputs, each with n rows; and whether it runs alone, with all the cores to itself
Run = Callable[[Array, bool], Sequence[Array]]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    max_batch: int  # photos
    max_delay_s: float
    # Photos of all calls that are admitted and not yet answered; with low priority, or of streams,
    # at most half, and of a caller that has some no more than stay free.
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
        streamed: bool,
    ) -> None:
        self._batcher = batcher
        self.photos = photos
        self.deadline = deadline
        self.caller = caller
        self.priority = priority
        self.streamed = streamed
        self._places: list[Place] = []
        # Guarded by the lock of the inference threads:
        self._coming = photos  # admitted, and neither filled nor failed
        self.left = False

    def place(self) -> "Place":
        """Of the next photo. To be called on the event loop."""
        assert len(self._places) < self.photos and not self.left
        self._places.append(Place(self))
        return self._places[-1]

    @property
    def waits(self) -> bool:
        """Whether anything of it may still be in the queue."""
        answers = (place.answer for place in self._places)
        return any(not answer.done() or answer.cancelled() for answer in answers)

    def __enter__(self) -> "Call":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._batcher._leave(self)
        places, self._places = self._places, []  # no cycle is left that only the collector ends
        for place in places:
            place.answer.cancel()  # asyncio logs no exception of it either, if nobody awaited that


class Place:
    """One photo's, to be filled or failed once, from any thread; after its call has left it is
    neither.

    `answer` raises DeadlineExceeded if the deadline passes before the batch of the photo starts, or
    would pass while it runs and others can take its place; whatever `run` raised, or what the place
    failed with.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class _InLine:
    """A request of a stream, until there is room for it."""

    photos: int
    deadline: float
    caller: Hashable
    priority: Priority
    let_in: asyncio.Future[Call]


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
        self._admission = Admission(settings.max_queue)
        self._line: Turns[_InLine] = Turns()
        # Guarded by the threads' lock:
        self._waiting: PriorityTurns[_Waiting] = PriorityTurns()
        self._coming = 0  # photos admitted, their places neither filled nor failed
        self._gathering_since = math.inf

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
        return self._enter(photos, deadline, object() if caller is None else caller, priority)

    async def admit_in_turn(
        self, photos: int, *, deadline: float, caller: Hashable, priority: Priority
    ) -> Call:
        """As `admit`, of a request of a stream: where there is no room it waits for its turn. Of a
        stream no more comes meanwhile than may be in flight, and nobody has to send it again."""
        let_in: asyncio.Future[Call] = self._loop.create_future()
        waiting = _InLine(
            photos=photos, deadline=deadline, caller=caller, priority=priority, let_in=let_in
        )
        self._line.put((caller, priority), waiting)
        self._let_in()
        try:
            return await let_in
        except asyncio.CancelledError:
            if let_in.cancelled():
                self._line.drop((caller, priority), lambda one: one is waiting)
            elif not let_in.exception():  # in the very moment in which it was let in
                let_in.result().__exit__(None, None, None)
            raise

    @property
    def waiting(self) -> int:
        """Photos that are decoded and not yet in a batch."""
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        """Photos that are admitted and not yet answered."""
        return self._admission.photos

    def _enter(
        self,
        photos: int,
        deadline: float,
        caller: Hashable,
        priority: Priority,
        *,
        streamed: bool = False,
    ) -> Call:
        first = self.admitted == 0
        self._admission.enter(photos, deadline, caller, priority, streamed=streamed)
        call = Call(self, photos, deadline, caller, priority, streamed)
        with self._threads.changed:
            if first:
                self._threads.add(self)
            self._coming += photos
        return call

    def _let_in(self) -> None:
        """Who waits in line, as far as there is room."""
        admission = self._admission
        while admission.has_room_for_streams:
            one = self._line.pop_if(lambda one: admission.has_room(one.caller, one.priority))
            if one is None:
                return
            if one.let_in.done():  # cancelled, and about to leave
                continue
            try:
                call = self._enter(
                    one.photos, one.deadline, one.caller, one.priority, streamed=True
                )
            except PawprintError as error:
                one.let_in.set_exception(error)
            else:
                one.let_in.set_result(call)

    # --- called by Place, on any thread

    def _put(self, place: Place, photo: Array) -> None:
        waiting = _Waiting(place, photo, time.monotonic())
        with self._threads.changed:
            if self._came(place.call):
                self._gathering_since = min(self._gathering_since, waiting.since)
                self._waiting.put(place.call.priority, place.call.caller, waiting)

    def _fail(self, place: Place, error: Exception) -> None:
        with self._threads.changed:
            there = self._came(place.call)
        if there:
            self._answered([place], [error], 0 if isinstance(error, DeadlineExceeded) else 1)

    def _came(self, call: Call) -> bool:
        """One photo less to wait for, unless its call has left; the lock is held."""
        if not call.left:
            call._coming -= 1
            self._coming -= 1
            self._threads.changed.notify()
        return not call.left

    # --- called by Call, on the event loop

    def _leave(self, call: Call) -> None:
        self._admission.leave(call.photos, call.caller, call.priority, streamed=call.streamed)
        with self._threads.changed:
            call.left = True
            self._coming -= call._coming
            if call.waits:  # else all that its caller has would be looked through for nothing
                self._waiting.drop(
                    call.priority, call.caller, lambda waiting: waiting.place.call is call
                )
            if not self._waiting:
                self._gathering_since = math.inf
            if self.admitted == 0:
                self._threads.remove(self)
            self._threads.changed.notify()
        self._let_in()

    # --- called by an inference thread, the lock held

    def due(self) -> float:
        if not self._waiting:
            return math.inf
        if self.waiting >= self._settings.max_batch or self._coming == 0:
            return -math.inf
        return self._gathering_since + self._settings.max_delay_s

    def take(self, idle: int, running: int) -> Work:
        batch: list[_Waiting] = []
        tight: list[_Waiting] = []  # not yet late, but would be when the batch is done
        late: list[_Waiting] = []
        share = min(self._settings.max_batch, math.ceil(self.waiting / idle))
        now = time.monotonic()
        done = now + share * (running + 1) * self._admission.photo_s
        while self._waiting and len(batch) < share:
            waiting = self._waiting.pop()
            deadline = waiting.place.call.deadline
            (batch if deadline > done else tight if deadline > now else late).append(waiting)
        while tight and len(batch) < share:  # the estimate may be wrong
            batch.append(tight.pop())
        late += tight
        if not self._waiting:
            self._gathering_since = math.inf
        alone = running == 0 and not self._waiting
        return lambda: self._run(batch, late, alone)

    # --- on an inference thread, without the lock

    def _run(
        self, batch: list[_Waiting], late: list[_Waiting], alone: bool
    ) -> Callable[[], object]:
        start = time.monotonic()
        results: list[Answer | BaseException]
        photos = len(batch)
        try:
            outputs = self._run_model(self._stack(batch), alone) if batch else ()
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
            results, photos = [error] * len(batch), 0
        results += [too_late() for _ in late]
        places = [waiting.place for waiting in (*batch, *late)]
        return partial(self._answered, places, results, photos)

    def _answered(
        self, places: Sequence[Place], results: Sequence[Answer | BaseException], photos: int
    ) -> None:
        """`photos`: how many of them took work."""
        now, admission = time.monotonic(), self._admission
        self._loop.call_soon_threadsafe(_deliver, admission, places, results, photos, now)

    def _stack(self, batch: list[_Waiting]) -> Array:
        photos = [waiting.photo for waiting in batch]
        size = next((size for size in self._settings.sizes if size >= len(batch)), len(batch))
        if size == len(batch):
            return np.stack(photos)
        padded = np.zeros((size, *photos[0].shape), photos[0].dtype)
        np.stack(photos, out=padded[: len(batch)])
        return padded


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("waited in the queue until the answer would come after the deadline")


def _deliver(
    admission: Admission,
    places: Sequence[Place],
    results: Sequence[Answer | BaseException],
    photos: int,
    at: float,
) -> None:
    if photos:
        admission.answered(photos, at)
    for place, result in zip(places, results, strict=True):
        if place.answer.done():  # its caller has gone; the others must have their answers
            continue
        if isinstance(result, BaseException):
            place.answer.set_exception(result)
        else:
            place.answer.set_result(result)

"""What every call passes through, whichever service it calls.

Counted, admitted, timed; its errors become status codes; each finished call is told to the sinks
(metrics, the access log, traces). Plain calls rather than gRPC's interceptors, which would wrap
each call in further coroutines and can't see what a call was about.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import uuid4

import grpc

from serving.catalogue import Catalogue, ServedVersion
from serving.classification import Inferred
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PawprintError,
    Unauthenticated,
    Unavailable,
)
from serving.malformed import ARRIVES_S, Parse
from serving.shares import Held, InLine, Shares
from serving.status import Failure, failure_of
from serving.tokens import Token, Tokens
from serving.turns import Priority

M = TypeVar("M")  # what comes
T = TypeVar("T")  # what goes back

REQUEST_ID = "x-request-id"
PUSHBACK = "grpc-retry-pushback-ms"
_LONGEST_ID = 128
# gRPC says that a call which it is about to cancel has no message, and cancels it a moment later.
_MOMENT_S = 0.1
# A caller gives up at its deadline by its own clock: what comes of it is as near to ours as this.
_SAME_S = 0.02
# A caller of a stream that reads at all makes room for an answer sooner; one that does not holds
# a place among the open streams, and the memory of its answers.
STALLED_S = 30.0


@dataclass(kw_only=True, slots=True)
class Call:
    """One call, or one request of a stream, from its receipt to its answer."""

    method: str
    start: float  # monotonic clock, as every time here
    deadline: float
    metadata: dict[str, str]
    request_id: str
    token: Token | None = None  # the caller's, where the server wants one
    place: Held | None = None  # among the calls being answered, once it has one
    model: str = ""  # the one that answers, once it is found
    version: int = 0
    photos: int = 0
    inferred: Inferred | None = None
    code: grpc.StatusCode = grpc.StatusCode.CANCELLED  # until it is answered
    end: float = math.nan

    @property
    def turn(self) -> str | None:
        """Calls of one token share a turn in the queue, however many they are; None without."""
        return self.token.name if self.token else None

    def found(self, served: ServedVersion) -> None:
        self.model = served.engine.manifest.name
        self.version = served.engine.manifest.version


Sink = Callable[[Call], None]  # told of each finished call, on the event loop; must not raise


@dataclass(frozen=True, kw_only=True)
class EdgeLimits:
    max_message_bytes: int
    max_calls: int  # answered at once; requests of streams count each
    max_streams: int  # open at once
    max_stream_in_flight: int  # requests of one stream that are answered at once


class Edge:
    """Its methods belong to the event loop."""

    def __init__(
        self, limits: EdgeLimits, tokens: Tokens | None = None, sinks: Sequence[Sink] = ()
    ) -> None:
        self._limits = limits
        self._tokens = tokens
        self._sinks = tuple(sinks)
        self._catalogue: Catalogue | None = None
        # Messages being read, but for those of streams, and requests being answered.
        self._calls = Shares(limits.max_calls, "calls are being answered", "try again later")
        self._here = 0  # calls and streams from their first moment to their last
        self._begun = 0  # calls and streams so far
        self._streams = Shares(
            limits.max_streams, "streams are open", "close one, or try again later"
        )
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._reading: set[asyncio.Timeout] = set()  # of open streams: ends when the server drains

    def serve(self, catalogue: Catalogue) -> None:
        """From now on, answer with these models."""
        self._catalogue = catalogue

    @property
    def serving(self) -> Catalogue | None:
        """What is served, None until something is loaded."""
        return self._catalogue

    @property
    def active(self) -> int:
        """Requests being answered."""
        return self._calls.total()

    @property
    def ready(self) -> bool:
        """Whether there is a version to answer with, as health says too."""
        here = self._catalogue is not None and self._catalogue.can_answer
        return here and not self._draining

    def catalogue(self) -> Catalogue:
        """Raises Unavailable while there is none."""
        if self._catalogue is None:
            raise Unavailable("the server is still loading its models; try again shortly")
        return self._catalogue

    async def drain(self, quiet_s: float) -> None:
        """Take nothing more from open streams; return when no call was here for `quiet_s`.

        A moment without one is not enough: a call that gRPC has accepted may not be here yet, and
        the last answers may still be on their way.
        """
        self._draining = True
        for reading in self._reading:
            reading.reschedule(0)
        seen = -1
        while seen != self._begun:
            seen = self._begun
            await self._idle.wait()
            await asyncio.sleep(quiet_s)

    def rank(self, call: Call, priority: Priority) -> None:
        """Say what the priority of a call is, once it is known. Raises Overloaded."""
        if priority is Priority.LOW and call.place is not None:
            self._calls.lower(call.place)

    def charge(self, call: Call) -> None:
        """Count the photos of a call against its caller's rate. Raises Overloaded."""
        if self._tokens is not None and call.token is not None:
            self._tokens.charge(call.token, call.photos)

    async def answer(
        self,
        context: Any,
        method: str,
        parse: Parse[M],
        work: Callable[[M, Call], Awaitable[T]],
    ) -> T:
        """`work`'s result for the message that `parse` reads; a call that fails is aborted with
        the status of its error."""
        call = _call(context, method)
        with self._present():
            try:
                self._identify(call)
                result = await self._answered(context, parse, work, call)
                call.code = grpc.StatusCode.OK
                context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
                return result
            except Exception as error:
                failure = _failure(error)
                call.code = failure.code
            finally:
                self._tell(call)
        await _abort(context, call, failure)
        raise AssertionError("abort raises")

    async def answer_at_once(
        self, context: Any, method: str, parse: Parse[M], describe: Callable[[M], T]
    ) -> T:
        """As `answer`, where there is nothing to wait for."""

        async def work(request: M, call: Call) -> T:
            return describe(request)

        return await self.answer(context, method, parse, work)

    async def answer_stream(
        self,
        context: Any,
        method: str,
        parse: Parse[M],
        work: Callable[[M, Call], Awaitable[T]],
        failed: Callable[[M, Failure], T],
        priority: Callable[[M], Priority],
    ) -> None:
        """Answer each request of a stream with `work`'s result, or `failed`'s where that raises;
        `priority` says whose place is one of low priority.

        Up to max_stream_in_flight at once; no further one is read until then, nor while one waits
        for its place among the calls.
        """
        whole = _call(context, method)
        slots = asyncio.Semaphore(self._limits.max_stream_in_flight)
        sending = asyncio.Lock()  # gRPC allows one message on its way at a time
        wrong: PawprintError | None = None

        async def answer(request: M, size: int, place: InLine) -> None:
            call = Call(
                method=method,
                start=time.monotonic(),
                deadline=whole.deadline,
                metadata=whole.metadata,
                request_id=whole.request_id,
                token=whole.token,
                place=place,
            )
            try:
                self._check_size(size)
                await place.let_in
                reply = await work(request, call)
                call.code = grpc.StatusCode.OK
            except Exception as error:
                failure = _failure(error)
                call.code = failure.code
                reply = failed(request, failure)
            finally:
                self._calls.leave(place)
                self._tell(call)
            del request  # its photos need not wait with the answer
            async with sending:
                await _write(context, reply)
            slots.release()

        with self._present():
            try:
                self._identify(whole)
                with self._streams.one(whole.turn):
                    context.set_trailing_metadata(((REQUEST_ID, whole.request_id),))
                    async with asyncio.TaskGroup() as group:

                        def begin(request: M, size: int) -> InLine:
                            if self._tokens is not None and whole.token is not None:
                                self._tokens.check(whole.token)
                            place = self._calls.join(
                                whole.turn, low=priority(request) is Priority.LOW
                            )
                            task = group.create_task(answer(request, size, place))
                            # Of one that is cancelled before it has begun nothing else would.
                            task.add_done_callback(lambda _: self._calls.leave(place))
                            return place

                        try:
                            await self._read(context, parse, slots, begin)
                        except (InvalidRequest, Unauthenticated) as error:
                            wrong = error  # once what was asked before it is answered
                if wrong:
                    raise wrong
                if self._draining:
                    raise Unavailable("the server is shutting down")
                return
            except PawprintError as error:
                failure = _failure(error)
            except ExceptionGroup as errors:  # of a task: its answer was not read
                failure = _failure(errors.exceptions[0])
            whole.code = failure.code
            self._tell(whole)
        await _abort(context, whole, failure)

    async def _answered(
        self, context: Any, parse: Parse[M], work: Callable[[M, Call], Awaitable[T]], call: Call
    ) -> T:
        """Holds the message, which the caller of this does not: gRPC keeps the frames of a call
        that is aborted until the garbage collector comes by.

        Admitted before it is read: a message takes over twice its size here while it comes.
        """
        with self._calls.one(call.turn) as call.place:
            data = await _message(context)
            call.start = time.monotonic()
            self._check_size(len(data))
            request = parse(data)
            del data  # the photos are in the request
            return await work(request, call)

    async def _read(
        self,
        context: Any,
        parse: Parse[M],
        slots: asyncio.Semaphore,
        begin: Callable[[M, int], InLine],
    ) -> None:
        """`begin` each request of a stream, once there is a slot for it and the one before has been
        let in, until no more come or the server drains.

        With the bytes of its message: one that is too large is refused by itself, and the stream
        goes on. Raises InvalidRequest for what can't be parsed, and whatever `begin` raises.
        """
        # One for all of them: a race of each against the event is four tasks and futures a request.
        reading = asyncio.timeout(0 if self._draining else None)
        self._reading.add(reading)
        try:
            async with reading:
                while True:
                    await slots.acquire()
                    data = await context.read()
                    if data is None or data is grpc.aio.EOF:
                        return
                    place = begin(parse(data), len(data))
                    del data
                    if not place.let_in.done():
                        await asyncio.wait([place.let_in])
        except TimeoutError:
            assert self._draining
        finally:
            self._reading.remove(reading)

    def _identify(self, call: Call) -> None:
        if self._tokens is not None:
            call.token = self._tokens.identify(call.metadata.get("authorization", ""))

    def _check_size(self, size: int) -> None:
        """Of a message, bytes. Raises InvalidRequest."""
        if size > self._limits.max_message_bytes:
            raise InvalidRequest(
                f"the message has {size:,} bytes; at most {self._limits.max_message_bytes:,} are "
                "allowed: send fewer or smaller photos"
            )

    @contextmanager
    def _present(self) -> Iterator[None]:
        self._begun += 1
        self._here += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._here -= 1
            if self._here == 0:
                self._idle.set()

    def _tell(self, call: Call) -> None:
        """Tell the sinks of a call that has ended."""
        call.end = time.monotonic()
        if call.code is grpc.StatusCode.CANCELLED and call.end >= call.deadline - _SAME_S:
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED
        for sink in self._sinks:
            sink(call)


def _call(context: Any, method: str) -> Call:
    start = time.monotonic()
    remaining = context.time_remaining()
    metadata = dict(context.invocation_metadata())
    return Call(
        method=method,
        start=start,
        deadline=math.inf if remaining is None else start + remaining,
        metadata=metadata,
        request_id=_request_id(metadata.get(REQUEST_ID)),
    )


async def _message(context: Any) -> bytes:
    """The message of a call that has one. Raises InvalidRequest, DeadlineExceeded."""
    try:
        async with asyncio.timeout(ARRIVES_S):
            data = await context.read()
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the message did not arrive within {ARRIVES_S:g} s; send fewer or smaller photos"
        ) from error
    if data is grpc.aio.EOF:
        await asyncio.sleep(_MOMENT_S)
        raise InvalidRequest("the call holds no message")
    return cast(bytes, data)


def _failure(error: Exception) -> Failure:
    """Ends the error: it and the frames that it came through would hold each other, and with them
    the photos, until the garbage collector comes by."""
    failure = failure_of(error)
    error.__traceback__ = None
    return failure


async def _write(context: Any, reply: Any) -> None:
    """Raises Unavailable if the caller does not read."""
    try:
        async with asyncio.timeout(STALLED_S):
            await context.write(reply)
    except TimeoutError as error:
        raise Unavailable(
            f"the answers of the stream were not read for {STALLED_S:g} s; open another"
        ) from error
    except grpc.aio.BaseError:  # the caller has gone: gRPC ends the stream
        pass


async def _abort(context: Any, call: Call, failure: Failure) -> None:
    trailers = (*failure.trailers, *_pushback(call, failure), (REQUEST_ID, call.request_id))
    try:
        await context.abort(failure.code, failure.message, trailers)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as error:  # the caller has gone, and can't be told
        raise asyncio.CancelledError from error


def _pushback(call: Call, failure: Failure) -> tuple[tuple[str, str], ...]:
    """When gRPC's own retries of a refused call, where its client has them, are to come; not at all
    if the call would be over by then: it had better know at once.

    https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
    """
    if not failure.retry_after_ms:
        return ()
    in_time = time.monotonic() + failure.retry_after_ms / 1e3 < call.deadline
    return ((PUSHBACK, str(failure.retry_after_ms if in_time else -1)),)


def _request_id(given: str | None) -> str:
    """The caller's, if it is one that a log and a header can take; else a new one."""
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid4().hex

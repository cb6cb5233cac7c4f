"""Sends calls that share a message, for threads and for asyncio; which do: client_batches.py."""

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.answers import Response
from serving.client_batches import LONGEST_IN_LINE_S, Answer, Asked, Batch, Batches, Call, Line
from serving.client_messages import no_answer
from serving.errors import PawprintError, Unavailable

INTERRUPTED = "what was to send the photos was interrupted; try again"


def call_of(asked: Asked, photos: Sequence[bytes], within_s: float, answer: Answer) -> Call:
    _, patience = math.frexp(within_s)
    until = time.monotonic() + within_s
    return Call(asked=asked, photos=photos, until=until, answer=answer, patience=patience)


class Together:
    """For threads. begin: sends a request with so many seconds' time, and returns gRPC's future of
    its answer; error_of: the exception for one that has failed."""

    def __init__(
        self,
        address: str,
        batches: Batches,
        begin: Callable[[pb.ClassifyRequest, float], Any],
        error_of: Callable[[Any], PawprintError],
    ) -> None:
        self._address, self._batches = address, batches
        self._begin, self._error_of = begin, error_of
        self._lock = threading.Lock()  # guards the batches and their answers

    def classify(self, asked: Asked, photos: Sequence[bytes], within_s: float) -> Response:
        answer: concurrent.futures.Future[Response] = concurrent.futures.Future()
        call = call_of(asked, photos, within_s, answer)
        with self._lock:
            self._batches.put(call)
            batches = self._batches.due(call.line)
        try:
            self._send(batches)
            if within_s > LONGEST_IN_LINE_S:
                with suppress(TimeoutError):
                    return answer.result(LONGEST_IN_LINE_S)
                with self._lock:
                    batches = self._batches.overdue(call)
                self._send(batches)
            return answer.result(call.until - time.monotonic())
        except TimeoutError:
            raise no_answer(self._address) from None
        finally:
            with self._lock:
                answer.cancel()
                cancel = self._batches.leave(call)
            if cancel is not None:
                cancel()

    def _send(self, batches: list[Batch]) -> None:
        for batch in batches:
            try:
                sent = self._begin(batch.request(), batch.within_s)
            except BaseException as error:  # Ctrl-C too: else it would be under way for ever
                told = error if isinstance(error, Exception) else Unavailable(INTERRUPTED)
                with self._lock:
                    more = self._batches.failed(batch, told)
                self._send(more)
                if told is not error:
                    raise
            else:
                batch.cancel = sent.cancel
                sent.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: Batch, sent: Any) -> None:
        """On a thread of gRPC's."""
        if sent.code() is grpc.StatusCode.OK:
            message = sent.result()
            with self._lock:
                more = self._batches.answered(batch, message)
        else:
            error = self._error_of(sent)
            with self._lock:
                more = self._batches.failed(batch, error)
        self._send(more)


class AsyncTogether:
    """For asyncio. call: sends a request with so many seconds' time, and raises PawprintError."""

    def __init__(
        self,
        address: str,
        batches: Batches,
        call: Callable[[pb.ClassifyRequest, float], Awaitable[pb.ClassifyResponse]],
    ) -> None:
        self._address, self._batches, self._call = address, batches, call
        self._looked_at_soon: set[Line] = set()

    async def classify(self, asked: Asked, photos: Sequence[bytes], within_s: float) -> Response:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        call = call_of(asked, photos, within_s, answer)
        self._batches.put(call)
        self._look_soon(call.line)
        timer = loop.call_later(LONGEST_IN_LINE_S, self._send_overdue, call)
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise no_answer(self._address) from None
        finally:
            timer.cancel()
            if (cancel := self._batches.leave(call)) is not None:
                cancel()

    def _look_soon(self, line: Line) -> None:
        """Once all tasks have asked that are about to, as those do that were answered together."""
        if line not in self._looked_at_soon:
            self._looked_at_soon.add(line)
            asyncio.get_running_loop().call_soon(self._look, line)

    def _look(self, line: Line) -> None:
        self._looked_at_soon.remove(line)
        self._send(self._batches.due(line))

    def _send_overdue(self, call: Call) -> None:
        self._send(self._batches.overdue(call))

    def _send(self, batches: list[Batch]) -> None:
        for batch in batches:
            task = asyncio.create_task(self._answer(batch))
            # Not at once: a task that is cancelled before its first step would tell of no end.
            batch.cancel = partial(asyncio.get_running_loop().call_soon, task.cancel)

    async def _answer(self, batch: Batch) -> None:
        try:
            message = await self._call(batch.request(), batch.within_s)
        except asyncio.CancelledError:  # as nobody waits any more, or by who cancels all tasks
            self._send(self._batches.failed(batch, Unavailable(INTERRUPTED)))
        except Exception as error:
            self._send(self._batches.failed(batch, error))
        else:
            self._send(self._batches.answered(batch, message))

"""The gRPC edge of ClassifierService: message -> core -> message, exceptions -> status codes."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.classification import Classifier
from serving.errors import (
    BrokenVersion,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unavailable,
)
from serving.messages import classify_response, get_model_response, list_models_response

log = logging.getLogger(__name__)

STATUS: dict[type[PawprintError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidImage: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    BrokenVersion: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}

T = TypeVar("T")


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the caller is told. An unexpected error is logged whole, and leaves as bare INTERNAL."""
    if isinstance(error, PawprintError):
        return STATUS[type(error)], str(error)
    log.error("unexpected error while answering a call", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error of the server"


class ClassifierService(classifier_pb2_grpc.ClassifierServiceServicer):
    def __init__(
        self, classifier: Classifier, *, max_message_bytes: int, max_stream_in_flight: int
    ) -> None:
        self._classifier = classifier
        self._max_message_bytes = max_message_bytes
        self._max_stream_in_flight = max_stream_in_flight
        self._catalogue: Catalogue | None = None
        self._active = 0  # requests being answered, those of streams counted each
        self._begun = 0  # requests so far
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()

    def serve(self, catalogue: Catalogue) -> None:
        """From now on, answer with these models."""
        self._catalogue = catalogue

    async def drain(self, quiet_s: float) -> None:
        """Take nothing more from open streams; return when no request was here for `quiet_s`.

        A moment without one is not enough: of a call that gRPC has accepted, the message may still
        be on its way.
        """
        self._draining.set()
        seen = -1
        while seen != self._begun or self._active:
            seen = self._begun
            await self._idle.wait()
            await asyncio.sleep(quiet_s)

    # --- the calls

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return await self._answer(context, self._classify(request, _deadline(context)))

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: Any
    ) -> None:
        """Answers up to max_stream_in_flight requests at once, and reads no further until then."""
        caller = object()  # one turn for the whole stream
        deadline = _deadline(context)
        slots = asyncio.Semaphore(self._max_stream_in_flight)
        sending = asyncio.Lock()  # gRPC allows one message on its way at a time

        async def answer(request: pb.ClassifyStreamRequest) -> None:
            reply = pb.ClassifyStreamResponse(request_id=request.request_id)
            with self._counted():
                try:
                    classified = await self._classify(request.request, deadline, caller)
                    reply.response.CopyFrom(classified)
                except Exception as error:
                    code, message = status_of(error)
                    reply.error.CopyFrom(pb.RequestError(code=code.value[0], message=message))
                async with sending:
                    with suppress(grpc.aio.BaseError):  # the caller has gone: gRPC ends the stream
                        await context.write(reply)
            slots.release()

        async with asyncio.TaskGroup() as answering:
            draining = asyncio.ensure_future(self._draining.wait())
            try:
                while not self._draining.is_set():
                    await _first(slots.acquire(), draining)
                    request = await _first(context.read(), draining)
                    if request is None or request is grpc.aio.EOF:
                        break
                    answering.create_task(answer(request))
            finally:
                draining.cancel()
        if self._draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        return await self._answer(context, self._described(list_models_response))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        def describe(catalogue: Catalogue) -> pb.GetModelResponse:
            return get_model_response(catalogue.find(request.model, request.version))

        return await self._answer(context, self._described(describe))

    # ---

    async def _classify(
        self, request: pb.ClassifyRequest, deadline: float, caller: Hashable = None
    ) -> pb.ClassifyResponse:
        start = time.monotonic()
        size = request.ByteSize()
        if size > self._max_message_bytes:
            raise InvalidRequest(
                f"the message has {size:,} bytes; at most {self._max_message_bytes:,} are allowed: "
                "send fewer or smaller photos"
            )
        served = self._ready().find(request.model, request.version)
        classified = await self._classifier.classify(
            served, request.images, top_k=request.top_k, deadline=deadline, caller=caller
        )
        return classify_response(classified, served, time.monotonic() - start)

    async def _described(self, describe: Callable[[Catalogue], T]) -> T:
        return describe(self._ready())

    def _ready(self) -> Catalogue:
        if self._catalogue is None:
            raise Unavailable("the server is still loading its models; try again shortly")
        return self._catalogue

    async def _answer(self, context: Any, answer: Awaitable[T]) -> T:
        with self._counted():
            try:
                return await answer
            except Exception as error:
                code, message = status_of(error)
            await context.abort(code, message)
            raise AssertionError("abort raises")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._begun += 1
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if self._active == 0:
                self._idle.set()


def _deadline(context: Any) -> float:
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


async def _first(wanted: Awaitable[T], other: "asyncio.Future[Any]") -> T | None:
    """The result of `wanted`, or None if `other` is done first."""
    task = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()

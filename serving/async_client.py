"""The client for asyncio; import it from serving.client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.access import Tls, async_channel_opener, authorised, sendable
from serving.answers import Model, ModelDescription, Response, StreamedResult
from serving.channel import servers_in
from serving.client_batches import Asked, Batches
from serving.client_messages import (
    CLOSED,
    CLOSED_MEANWHILE,
    DEFAULT_IN_FLIGHT,
    DEFAULT_TIMEOUT_S,
    Photo,
    classify_request,
    description_of,
    encoded,
    exception_of,
    exception_of_call,
    hedge_s,
    model_request,
    models_of,
    photos_together,
    places_for,
    response_of,
    retry_after_s,
    several,
    wait_s,
)
from serving.client_stream import StreamState, after_end, ended_early
from serving.errors import InvalidRequest, Unavailable
from serving.hedging import hedged_async
from serving.outbox import Outbox
from serving.together import AsyncTogether

T = TypeVar("T")

# Of _StreamRequestMixin._write in grpc.aio.
_BROKEN_WRITE = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class AsyncClient:
    """The same as Client, for asyncio; belongs to the event loop that first uses it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        hedge_after_s: float | None = None,
        max_batch: int = 1,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.hedge_after_s = hedge_s(hedge_after_s)
        self.max_batch = photos_together(max_batch, hedge_after_s)
        self._together = AsyncTogether(
            address,
            Batches(max_batch, servers_in(address)),
            lambda request, within_s: self._call(self._stub.Classify, request, within_s),
        )
        self._token = sendable(token)
        self._open = async_channel_opener(address, tls)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the channel

    @property
    def _stub(self) -> Any:
        """Raises Unavailable if the client is closed, InvalidRequest in another event loop."""
        if self._closed:
            raise Unavailable(CLOSED)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._channel = self._open()
            stub = classifier_pb2_grpc.ClassifierServiceStub(self._channel)
            self._connected = authorised(stub, self._token)
            self._loop = loop
        if self._loop is not loop:
            raise InvalidRequest(
                "an AsyncClient belongs to the event loop that first used it (asyncio.run makes a "
                "new one each time): make one in each"
            )
        return self._connected

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncClient can't be pickled: it is a connection; make one in each process"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """What still runs, and each later call, raises Unavailable."""
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            await self._channel.close()

    async def classify(
        self,
        photos: Sequence[Photo],
        *,
        model: str,
        version: str | int = "",
        top_k: int = 1,
        low_priority: bool = False,
        routing_key: str = "",
        timeout_s: float | None = None,
    ) -> Response:
        """See Client.classify."""
        data = [await _off_the_loop(encoded, photo) for photo in several(photos)]
        asked = Asked(model, version, top_k, low_priority, routing_key)
        method = self._stub.Classify
        if data and self.max_batch > 1:
            return await self._together.classify(asked, data, wait_s(timeout_s, self.timeout_s))
        request = classify_request(data, *asked)
        return response_of(await self._call(method, request, timeout_s, self.hedge_after_s))

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """See Client.list_models."""
        message = await self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return models_of(message)

    async def get_model(
        self, model: str, version: str | int = "", *, timeout_s: float | None = None
    ) -> ModelDescription:
        """See Client.get_model."""
        request = model_request(model, version)
        return description_of(await self._call(self._stub.GetModel, request, timeout_s))

    async def stream(
        self,
        photos: Iterable[Photo],
        *,
        model: str,
        version: str | int = "",
        top_k: int = 1,
        low_priority: bool = False,
        routing_key: str = "",
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamedResult, None]:
        """See Client.stream."""
        asked = Asked(model, version, top_k, low_priority, routing_key)
        state = StreamState(self.address, asked, self.max_batch)
        outbox: Outbox[asyncio.Queue[pb.ClassifyStreamRequest | None]] = Outbox(asyncio.Queue)
        arrived: asyncio.Queue[StreamedResult | BaseException | None] = asyncio.Queue()
        slots = asyncio.Semaphore(places_for(in_flight))
        loop = asyncio.get_running_loop()

        async def send() -> None:
            try:
                for index, photo in enumerate(several(photos)):
                    await slots.acquire()
                    data = await _off_the_loop(partial(state.read, index), photo)
                    if isinstance(data, StreamedResult):
                        arrived.put_nowait(data)
                    else:
                        state.send(index, data)
                        loop.call_soon(lambda: outbox.put(*state.due()))  # with those right after
                outbox.put(*state.due(all_of_it=True))
                outbox.close()
            except BaseException as error:  # of the caller's own iterable: raised where it waits
                arrived.put_nowait(error)

        async def receive() -> None:
            try:
                while True:
                    call = self._stub.ClassifyStream(_each(outbox.open_queue()))
                    end = _End(call)
                    try:
                        async for message in call:
                            number, again_s = message.request_id, state.again_in(message)
                            if again_s is None:
                                results, due = state.receive(message)
                                outbox.answered(number, *due)
                                for result in results:
                                    arrived.put_nowait(result)
                            else:
                                outbox.postpone(number)
                                loop.call_later(again_s, outbox.again, number)
                        code, lost = ended_early(self.address)
                    except grpc.aio.AioRpcError as error:
                        code, details = end.of(error)
                        lost = exception_of(code, details, self.address, retry_after_s(error))
                    except asyncio.CancelledError:
                        _raise_if_closed()
                        raise
                    finally:
                        call.cancel()
                    refused, again_s = after_end(outbox, state, code, lost)
                    for result in refused:
                        arrived.put_nowait(result)
                    if again_s is None:
                        break
                    await asyncio.sleep(again_s)
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
        longest_s = wait_s(timeout_s, self.timeout_s)
        try:
            while (result := await _next(arrived, state, longest_s)) is not None:
                if isinstance(result, BaseException):
                    raise result
                slots.release()
                yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _call(
        self,
        method: Any,
        request: Any,
        timeout_s: float | None,
        hedge_after_s: float | None = None,
    ) -> Any:
        within_s = wait_s(timeout_s, self.timeout_s)
        try:
            if hedge_after_s is not None and hedge_after_s < within_s:
                return await hedged_async(method, request, within_s, hedge_after_s)
            return await method(request, timeout=within_s)
        except grpc.aio.AioRpcError as error:
            raise exception_of_call(error, self.address) from None
        except asyncio.CancelledError:
            _raise_if_closed()
            raise
        except grpc.aio.UsageError:  # of the second attempt, where close() came before it
            if self._closed:
                raise Unavailable(CLOSED_MEANWHILE) from None
            raise


async def _off_the_loop(read: Callable[[Photo], T], photo: Photo) -> T:
    """In a thread where a file is read, or a picture encoded."""
    if isinstance(photo, bytes):
        return read(photo)
    return await asyncio.to_thread(read, photo)


def _raise_if_closed() -> None:
    """Raises Unavailable where a call was cancelled and its task was not: grpc.aio cancels so what
    still runs when its channel is closed."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Unavailable(CLOSED_MEANWHILE) from None


class _End:
    """How a stream has ended, noted as it does. grpc.aio puts something else in its place where a
    write comes too late: then error and call say no more than that."""

    def __init__(self, call: Any) -> None:
        self._noted: tuple[grpc.StatusCode, str | None] | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        asked = _code_and_details(call)
        try:
            asked.send(None)  # a call that has ended lets nobody wait
        except StopIteration as answer:
            self._noted = answer.value
        finally:
            asked.close()

    def of(self, error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str | None]:
        """Code and details. That of no failure, or of a write alone, counts as a lost stream."""
        said = (error.code(), error.details())
        for code, details in (self._noted or said, said):
            if code is not grpc.StatusCode.OK and (code, details) != _BROKEN_WRITE:
                return code, details
        return grpc.StatusCode.UNAVAILABLE, _BROKEN_WRITE[1]


async def _code_and_details(call: Any) -> tuple[grpc.StatusCode, str | None]:
    return await call.code(), await call.details()


async def _each(requests: "asyncio.Queue[T | None]") -> AsyncIterator[T]:
    while (request := await requests.get()) is not None:
        yield request


async def _next(arrived: "asyncio.Queue[T]", state: StreamState, wait_s: float) -> T:
    begun, left_s = time.monotonic(), wait_s
    while True:
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes with an answer.
            async with asyncio.timeout(left_s):
                return await arrived.get()
        except TimeoutError:
            left_s = state.left_s(begun, wait_s)

"""Calls a Pawprint server.

    with Client("localhost:50051") as client:
        response = client.classify(["cat.jpg", "dog.jpg"], model="pets")
        print(response.results[0].label)

A photo is a path, encoded bytes, or a Pillow image. Every method raises the exceptions of
serving.errors: InvalidRequest (also for a call whose only photo can't be read), NotFound,
Overloaded, DeadlineExceeded, Unavailable; PawprintError for a fault of the server.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.access import Tls, authorised, channel_opener, sendable
from serving.answers import Model, ModelDescription, Response, StreamedResult
from serving.async_client import AsyncClient
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
    exception_of_call,
    hedge_s,
    model_request,
    models_of,
    photos_together,
    places_for,
    response_of,
    several,
    wait_s,
)
from serving.client_stream import StreamState, after_end, ended_early
from serving.errors import PawprintError, Unavailable
from serving.hedging import hedged
from serving.outbox import Outbox
from serving.together import Together

__all__ = ["AsyncClient", "Client", "Tls"]

T = TypeVar("T")

# Of a parent process. Never let go of: that could end the parent's connection.
_INHERITED: list[grpc.Channel] = []


class Client:
    """Blocking; may be used from several threads. Raises InvalidRequest for what can't be.

    address: of one server, or of several (see serving.channel.target_of), between which calls are
    balanced; a call that one can't answer is tried at another. timeout_s: of each call, unless
    given there. hedge_after_s: where `classify` has no answer by then, a second server is asked
    too, and the faster answer counts; None: never. max_batch: calls of `classify` that are made at
    once, from several threads, share messages of up to so many photos; 1: none does. tls: the call
    is not encrypted without. token: shown to a server that wants one.
    """

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
        self._token = sendable(token)
        self._open = channel_opener(address, tls)
        self._closed = False
        self._lock = threading.Lock()
        self._connect()

    def _connect(self) -> None:
        self._channel = self._open()
        stub = classifier_pb2_grpc.ClassifierServiceStub(self._channel)
        self._connected = authorised(stub, self._token)
        batches = Batches(self.max_batch, servers_in(self.address))
        self._together = Together(self.address, batches, self._begin, self._error_of)
        self._process = os.getpid()

    @property
    def _stub(self) -> Any:
        """Raises Unavailable if the client is closed."""
        self._connect_here()
        return self._connected

    def _connect_here(self) -> None:
        """A process that was forked has a connection of its own: its parent's is at work in threads
        that it has not. Raises Unavailable if the client is closed."""
        if self._closed:
            raise Unavailable(CLOSED)
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    _INHERITED.append(self._channel)
                    self._connect()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client can't be pickled: it is a connection; make one in each process")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What still runs, and each later call, raises Unavailable."""
        self._closed = True
        if self._process == os.getpid():
            self._channel.close()

    def classify(
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
        """One call. version: a number, an alias, or "" for the default. low_priority: other calls
        go first. routing_key: with no version given, calls of one key are answered by one version.

        Raises OSError for a file that can't be read, TypeError for a photo that is in no list.
        """
        data = [encoded(photo) for photo in several(photos)]
        asked = Asked(model, version, top_k, low_priority, routing_key)
        if data and self.max_batch > 1:
            self._connect_here()
            return self._together.classify(asked, data, wait_s(timeout_s, self.timeout_s))
        request = classify_request(data, *asked)
        return response_of(self._call("Classify", request, timeout_s, self.hedge_after_s))

    def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """What the server answers with now."""
        return models_of(self._call("ListModels", pb.ListModelsRequest(), timeout_s))

    def get_model(
        self, model: str, version: str | int = "", *, timeout_s: float | None = None
    ) -> ModelDescription:
        """What a version is, and what was measured of it. version: as `classify` takes it."""
        request = model_request(model, version)
        return description_of(self._call("GetModel", request, timeout_s))

    def stream(
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
    ) -> Generator[StreamedResult, None, None]:
        """Classify any number of photos, `in_flight` at a time; each result comes once it is ready.

        A photo that can't be read, here or there, has its error in its result. What a server that
        goes away has left unanswered is sent to another, and what one refuses for now, as over a
        token's rate, is sent again when it says. timeout_s: the longest wait for the next
        answer while a photo has none.
        """
        asked = Asked(model, version, top_k, low_priority, routing_key)
        state = StreamState(self.address, asked, self.max_batch)
        outbox: Outbox[queue.SimpleQueue[pb.ClassifyStreamRequest | None]]
        outbox = Outbox(queue.SimpleQueue)
        arrived: queue.SimpleQueue[StreamedResult | BaseException | None] = queue.SimpleQueue()
        slots = threading.Semaphore(places_for(in_flight))
        ended = threading.Event()
        call: Any = None

        def send() -> None:
            try:
                for index, photo in enumerate(several(photos)):
                    slots.acquire()
                    if ended.is_set():
                        return
                    data = state.read(index, photo)
                    if isinstance(data, StreamedResult):
                        arrived.put(data)
                    else:
                        state.send(index, data)
                        outbox.put(*state.due())
                outbox.put(*state.due(all_of_it=True))
                outbox.close()
            except BaseException as error:  # of the caller's own iterable: raised where it waits
                arrived.put(error)

        def later(wait_s: float, number: int) -> None:
            timer = threading.Timer(wait_s, outbox.again, (number,))
            timer.daemon = True
            timer.start()

        def receive() -> None:
            nonlocal call
            try:
                while not ended.is_set():
                    with self._told_if_closed():
                        call = self._stub.ClassifyStream(iter(outbox.open_queue().get, None))
                    if ended.is_set():
                        call.cancel()
                    try:
                        for message in call:
                            number, again_s = message.request_id, state.again_in(message)
                            if again_s is None:
                                results, due = state.receive(message)
                                outbox.answered(number, *due)
                                for result in results:
                                    arrived.put(result)
                            else:
                                outbox.postpone(number)
                                later(again_s, number)
                        code, lost = ended_early(self.address)
                    except grpc.RpcError as error:
                        code, lost = error.code(), exception_of_call(error, self.address)
                    refused, again_s = after_end(outbox, state, code, lost)
                    for result in refused:
                        arrived.put(result)
                    if again_s is None:
                        break
                    ended.wait(again_s)
                arrived.put(None)
            except Exception as error:
                arrived.put(error)
            finally:
                outbox.open_queue()  # gRPC's thread waits on the one before

        threading.Thread(target=send, daemon=True).start()
        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        longest_s = wait_s(timeout_s, self.timeout_s)
        try:
            while (result := _next(arrived, state, longest_s)) is not None:
                if isinstance(result, BaseException):
                    raise result
                slots.release()
                yield result
        finally:
            ended.set()
            slots.release()
            # At the end of the program its other threads stand still: nobody waits for them.
            if not sys.is_finalizing():
                if call is not None:
                    call.cancel()
                receiver.join()

    def _call(
        self,
        name: str,
        request: Any,
        timeout_s: float | None,
        hedge_after_s: float | None = None,
    ) -> Any:
        within_s = wait_s(timeout_s, self.timeout_s)
        method = getattr(self._stub, name)
        try:
            with self._told_if_closed():
                if hedge_after_s is not None and hedge_after_s < within_s:
                    return hedged(method, request, within_s, hedge_after_s)
                return method(request, timeout=within_s)
        except grpc.RpcError as error:
            raise self._error_of(error) from None

    def _begin(self, request: pb.ClassifyRequest, within_s: float) -> Any:
        """gRPC's future of its answer."""
        with self._told_if_closed():
            return self._stub.Classify.future(request, timeout=within_s)

    @contextmanager
    def _told_if_closed(self) -> Iterator[None]:
        """What begins a call, which another thread's close() may come before."""
        try:
            yield
        except ValueError:  # of gRPC
            if self._closed:
                raise Unavailable(CLOSED) from None
            raise

    def _error_of(self, error: Any) -> PawprintError:
        if self._closed and error.code() is grpc.StatusCode.CANCELLED:
            return Unavailable(CLOSED_MEANWHILE)
        return exception_of_call(error, self.address)


def _next(arrived: "queue.SimpleQueue[T]", state: StreamState, wait_s: float) -> T:
    begun, left_s = time.monotonic(), wait_s
    while True:
        try:
            return arrived.get(timeout=left_s)
        except queue.Empty:
            left_s = state.left_s(begun, wait_s)

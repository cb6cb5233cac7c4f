"""The bookkeeping of a stream of photos, shared by the blocking and the asyncio client."""

import math
import threading
import time
from typing import Any

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.answers import Response, Result, StreamedResult
from serving.client_batches import Asked, Batch, Batches, Call
from serving.client_messages import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Photo,
    classify_request,
    encoded,
    exception_of,
)
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PawprintError,
    Unavailable,
)
from serving.outbox import Outbox

# A message over the server's limit ends the stream, and all in flight is sent again: so what no
# server takes unless told otherwise (`serve --max-message-mib`, 64) is not sent.
MAX_PHOTO_BYTES = 64 * 1024 * 1024

# Results, and the messages that are due with them.
Received = tuple[list[StreamedResult], list[pb.ClassifyStreamRequest]]


class StreamState:
    """One thread may send while another receives."""

    def __init__(self, address: str, asked: Asked, max_batch: int) -> None:
        """Raises InvalidRequest, here and not where a message is due, for what can't be asked."""
        classify_request([], *asked)
        self._address = address
        self._asked = asked
        self._batches = Batches(max_batch)
        self._lock = threading.Lock()  # guards the batches
        self._under_way: dict[int, Batch] = {}  # by the index of its first photo
        self._results: list[StreamedResult] = []
        self._sent_at: dict[int, float] = {}
        self._wait_s: dict[int, float] = {}  # of those that were refused for now, the next time
        self._refusal = ""  # the last one
        self._too_large = MAX_PHOTO_BYTES + 1

    def read(self, index: int, photo: Photo) -> bytes | StreamedResult:
        """The bytes to send, or the result at once of one that can't be read, or is too large."""
        try:
            data = encoded(photo)
        except OSError as error:
            return _refused(index, f"can't be read: {error}")
        if len(data) > MAX_PHOTO_BYTES:
            said = f"{len(data):,} bytes; at most {MAX_PHOTO_BYTES:,} can be streamed"
            return _refused(index, said)
        if len(data) >= self._too_large:
            return _refused(index, f"{len(data):,} bytes are more than the server takes")
        return data

    def send(self, index: int, data: bytes) -> None:
        """With a message that will be due."""
        self._sent_at[index] = time.monotonic()
        answer = _Photo(self, index)
        with self._lock:
            self._batches.put(Call(asked=self._asked, photos=[data], until=math.inf, answer=answer))

    def due(self, *, all_of_it: bool = False) -> list[pb.ClassifyStreamRequest]:
        """The messages that may go by now; all_of_it: no more photos come."""
        with self._lock:
            return self._requests(self._batches.due((self._asked, 0), all_of_it=all_of_it))

    def _requests(self, batches: list[Batch]) -> list[pb.ClassifyStreamRequest]:
        requests = []
        for batch in batches:
            first = batch.calls[0].answer
            assert isinstance(first, _Photo)
            self._under_way[first.index] = batch
            request = batch.request()
            requests.append(pb.ClassifyStreamRequest(request_id=first.index, request=request))
        return requests

    def refuse(self, request: pb.ClassifyStreamRequest, error: PawprintError) -> Received:
        """A message that has ended a stream as too large. Further photos of its size are not sent
        at all, if it was one."""
        if len(request.request.images) == 1:
            self._too_large = min(self._too_large, len(request.request.images[0]))
        return self._failed(request.request_id, InvalidRequest(str(error)))

    def left_s(self, begun: float, wait_s: float) -> float:
        """How much longer to wait for an answer: `wait_s` from `begun` on, or, if that is later,
        from when the oldest photo without one was sent; all of it where none is.

        Raises DeadlineExceeded if that is over.
        """
        now = time.monotonic()
        oldest = min([*self._sent_at.values()], default=now)
        left_s = wait_s - (now - max(begun, oldest))
        if left_s <= 0:
            raise DeadlineExceeded(f"no answer came for {wait_s:g} s{self._refusal}")
        return left_s

    def again_in(self, message: pb.ClassifyStreamResponse) -> float | None:
        """In how many seconds to send a message again that is refused for now, as over its token's
        rate; None for an answer."""
        if not message.error.retry_after_ms:
            return None
        number, told_s = message.request_id, message.error.retry_after_ms / 1e3
        self._refusal = f"; the last time it was: {message.error.message}"
        # All that are in flight are told the same, and it is of no use to most.
        wait_s = max(told_s, self._wait_s.get(number, FIRST_WAIT_S))
        self._wait_s[number] = min(2 * wait_s, LONGEST_WAIT_S)
        return wait_s

    def receive(self, message: pb.ClassifyStreamResponse) -> Received:
        """Raises the exception of a refusal that is not the photos' own."""
        number = message.request_id
        self._wait_s.pop(number, None)
        if message.WhichOneof("outcome") != "response":
            error = exception_of(message.error.code, message.error.message, self._address)
            if not isinstance(error, InvalidRequest | Overloaded):
                raise error
            return self._failed(number, error)
        with self._lock:
            batch = self._under_way.pop(number)
            return self._received(self._batches.answered(batch, message.response))

    def _failed(self, number: int, error: PawprintError) -> Received:
        with self._lock:
            return self._received(self._batches.failed(self._under_way.pop(number), error))

    def _received(self, due: list[Batch]) -> Received:
        results, self._results = self._results, []
        return results, self._requests(due)

    def _ended(self, index: int, result: Result, response: Response | None) -> None:
        latency_s = time.monotonic() - self._sent_at.pop(index)
        self._results.append(
            StreamedResult(index=index, result=result, response=response, latency_s=latency_s)
        )


class _Photo:
    """The answer to one photo, as a batch has it for each of its calls."""

    def __init__(self, state: StreamState, index: int) -> None:
        self._state, self.index = state, index

    def done(self) -> bool:
        return False  # nobody leaves but all

    def set_result(self, response: Response) -> None:
        self._state._ended(self.index, response.results[0], response)

    def set_exception(self, error: BaseException) -> None:
        self._state._ended(self.index, Result(labels=(), error=str(error)), None)


def after_end(
    outbox: Outbox[Any], state: StreamState, code: grpc.StatusCode, lost: PawprintError
) -> tuple[list[StreamedResult], float | None]:
    """A stream has ended: the results of a message that has ended it, as too large, if one has; and
    in how many seconds to open the next one, None: all is answered.

    Raises `lost` where there is no sense in another.
    """
    # Then the largest that has no answer is over the server's limit, maybe not it alone.
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(lost, InvalidRequest)
    dropped = outbox.drop_largest() if too_large else None
    refused: list[StreamedResult] = []
    if dropped is not None:
        refused, again = state.refuse(dropped, lost)
        outbox.put(*again)
    if outbox.finished:
        return refused, None
    again_s = 0.0 if dropped is not None else outbox.lose(lost)
    if again_s is None:
        raise lost
    return refused, again_s


def ended_early(address: str) -> tuple[grpc.StatusCode, PawprintError]:
    """What it is if a server ends a stream, as if all were well, and not all is answered."""
    error = Unavailable(f"the server at {address} ended the stream before all was answered")
    return grpc.StatusCode.UNAVAILABLE, error


def _refused(index: int, error: str) -> StreamedResult:
    result = Result(labels=(), error=error)
    return StreamedResult(index=index, result=result, response=None, latency_s=0.0)

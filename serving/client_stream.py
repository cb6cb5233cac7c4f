"""The bookkeeping of a stream of photos, shared by the blocking and the asyncio client."""

import time
from typing import Any

import grpc

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.answers import Result, StreamedResult
from serving.client_messages import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Photo,
    classify_request,
    encoded,
    exception_of,
    response_of,
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


class StreamState:
    def __init__(
        self, address: str, model: str, version: str | int, top_k: int, low_priority: bool
    ) -> None:
        self._address = address
        self._model = model
        self._version = version
        self._top_k = top_k
        self._low_priority = low_priority
        self._sent_at: dict[int, float] = {}
        self._wait_s: dict[int, float] = {}  # of those that were refused for now, the next time
        self._refusal = ""  # the last one
        self._too_large = MAX_PHOTO_BYTES + 1

    def send(self, index: int, photo: Photo) -> pb.ClassifyStreamRequest | StreamedResult:
        """The message for a photo, or its result at once if it can't be read, or is too large."""
        try:
            data = encoded(photo)
        except OSError as error:
            return _refused(index, f"can't be read: {error}", 0.0)
        if len(data) > MAX_PHOTO_BYTES:
            said = f"{len(data):,} bytes; at most {MAX_PHOTO_BYTES:,} can be streamed"
            return _refused(index, said, 0.0)
        if len(data) >= self._too_large:
            return _refused(index, f"{len(data):,} bytes are more than the server takes", 0.0)
        self._sent_at[index] = time.monotonic()
        return pb.ClassifyStreamRequest(
            request_id=index,
            request=classify_request(
                [data], self._model, self._version, self._top_k, self._low_priority
            ),
        )

    def refuse(self, request: pb.ClassifyStreamRequest, error: PawprintError) -> StreamedResult:
        """The result of a photo that has ended a stream as too large. Further ones of its size are
        not sent at all."""
        index = request.request_id
        self._too_large = min(self._too_large, len(request.request.images[0]))
        return _refused(index, str(error), time.monotonic() - self._sent_at.pop(index))

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
        """In how many seconds to send a photo again that is refused for now, as over its token's
        rate; None for an answer."""
        if not message.error.retry_after_ms:
            return None
        index, told_s = message.request_id, message.error.retry_after_ms / 1e3
        self._refusal = f"; the last time it was: {message.error.message}"
        # All that are in flight are told the same, and it is of no use to most.
        wait_s = max(told_s, self._wait_s.get(index, FIRST_WAIT_S))
        self._wait_s[index] = min(2 * wait_s, LONGEST_WAIT_S)
        return wait_s

    def receive(self, message: pb.ClassifyStreamResponse) -> StreamedResult:
        """Raises the exception of a refusal that is not this photo's own."""
        index = message.request_id
        latency_s = time.monotonic() - self._sent_at.pop(index)
        self._wait_s.pop(index, None)
        if message.WhichOneof("outcome") == "response":
            response = response_of(message.response)
            return StreamedResult(
                index=index, result=response.results[0], response=response, latency_s=latency_s
            )
        error = exception_of(message.error.code, message.error.message, self._address)
        if not isinstance(error, InvalidRequest | Overloaded):
            raise error
        return _refused(index, str(error), latency_s)


def after_end(
    outbox: Outbox[Any], state: StreamState, code: grpc.StatusCode, lost: PawprintError
) -> tuple[StreamedResult | None, float | None]:
    """A stream has ended: the result of a photo that has ended it, as too large, if one has; and in
    how many seconds to open the next one, None: all is answered.

    Raises `lost` where there is no sense in another.
    """
    # Then the largest that has no answer is over the server's limit, maybe not it alone.
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(lost, InvalidRequest)
    dropped = outbox.drop_largest() if too_large else None
    refused = None if dropped is None else state.refuse(dropped, lost)
    if outbox.finished:
        return refused, None
    again_s = 0.0 if refused is not None else outbox.lose(code)
    if again_s is None:
        raise lost
    return refused, again_s


def ended_early(address: str) -> tuple[grpc.StatusCode, PawprintError]:
    """What it is if a server ends a stream, as if all were well, and not all is answered."""
    error = Unavailable(f"the server at {address} ended the stream before all was answered")
    return grpc.StatusCode.UNAVAILABLE, error


def _refused(index: int, error: str, latency_s: float) -> StreamedResult:
    result = Result(labels=(), error=error)
    return StreamedResult(index=index, result=result, response=None, latency_s=latency_s)

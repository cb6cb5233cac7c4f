"""The requests of a stream that have no answer yet, kept to be sent again if the stream is lost.

ClassifyStream changes nothing on a server, so a repeated request is harmless. gRPC itself retries
no stream once an answer has come.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.channel import INITIAL_BACKOFF_S, MAX_ATTEMPTS, MAX_BACKOFF_S
from serving.errors import PawprintError, Unavailable


class Queue(Protocol):
    """queue.SimpleQueue or asyncio.Queue; None ends what it holds."""

    def put_nowait(self, item: pb.ClassifyStreamRequest | None, /) -> None: ...


Q = TypeVar("Q", bound=Queue)


class Outbox(Generic[Q]):
    """One thread may put while another receives. It holds what is in flight and no more."""

    def __init__(self, new_queue: Callable[[], Q]) -> None:
        self._new_queue = new_queue
        self._queue = new_queue()
        self._unanswered: dict[int, pb.ClassifyStreamRequest] = {}
        self._losses: dict[int, int] = {}  # of each of them, the streams that were lost with it
        self._postponed: set[int] = set()  # those of them that are not to be sent yet
        self._closed = False
        self._lock = threading.Lock()

    def put(self, *requests: pb.ClassifyStreamRequest) -> None:
        with self._lock:
            self._put(requests)

    def _put(self, requests: Iterable[pb.ClassifyStreamRequest]) -> None:
        for request in requests:
            self._unanswered[request.request_id] = request
            self._losses[request.request_id] = 0
            self._queue.put_nowait(request)

    def close(self) -> None:
        """There are no more requests."""
        with self._lock:
            self._closed = True
            self._end_queue()

    def answered(self, request_id: int, *due: pb.ClassifyStreamRequest) -> None:
        """due: what is to be sent now, maybe under the same number."""
        with self._lock:
            del self._unanswered[request_id], self._losses[request_id]
            self._put(due)
            self._end_queue()

    def postpone(self, request_id: int) -> None:
        """It was refused for now: until `again` it is not sent, on another stream neither."""
        with self._lock:
            self._postponed.add(request_id)
            self._losses[request_id] = 0  # it is not what brings servers down

    def again(self, request_id: int) -> None:
        with self._lock:
            self._postponed.remove(request_id)
            self._queue.put_nowait(self._unanswered[request_id])

    def drop_largest(self) -> pb.ClassifyStreamRequest | None:
        """Of those without an answer: it is not sent again. None where there is none."""
        with self._lock:
            sent = (self._unanswered[i] for i in self._unanswered.keys() - self._postponed)
            largest = max(sent, key=lambda request: request.ByteSize(), default=None)
            if largest is not None:
                del self._unanswered[largest.request_id], self._losses[largest.request_id]
            return largest

    @property
    def finished(self) -> bool:
        with self._lock:
            return self._closed and not self._unanswered

    def open_queue(self) -> Q:
        """What the next stream is to send, all that has no answer first; ends the queue before."""
        with self._lock:
            self._queue.put_nowait(None)
            self._queue = self._new_queue()
            for request_id, request in self._unanswered.items():
                if request_id not in self._postponed:
                    self._queue.put_nowait(request)
            self._end_queue()
            return self._queue

    def _end_queue(self) -> None:
        """Once nothing more can come, not even what was refused for now; the lock is held."""
        if self._closed and not self._unanswered:
            self._queue.put_nowait(None)

    def lose(self, error: PawprintError) -> float | None:
        """A stream has failed: in how many seconds to open the next one, None: not again.

        As for other calls, each request has MAX_ATTEMPTS: one that brings servers down is not sent
        to all of them for ever.
        """
        with self._lock:
            for request_id in self._losses:
                self._losses[request_id] += 1
            losses = max(self._losses.values(), default=0)
        if not isinstance(error, Unavailable) or losses == MAX_ATTEMPTS:
            return None
        return min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2.0 ** (losses - 1))

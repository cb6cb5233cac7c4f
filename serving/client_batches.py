"""Which calls of a client share a message. Knows neither gRPC nor threads nor the event loop.

By Nagle's rule (RFC 896): with little under way a call goes at once, alone; what comes while
answers are waited for goes with the next message, or as soon as that is full. So a lone caller
waits for nobody, and of many at once each message carries several, which costs client and server
once what single calls cost each. Nobody waits long for answers to others, which may take minutes:
they may be of many photos, or of a server that hangs beside others that don't.
"""

import copy
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.answers import Response
from serving.client_messages import classify_request, response_of
from serving.errors import InvalidRequest, PawprintError

# Messages to a server: one is worked on while the answer to the other is on its way.
UNDER_WAY = 2
LONGEST_IN_LINE_S = 0.1
# Photos of more travel alone: what a message costs is little beside what they do.
MOST_BYTES = 1 << 20


class Asked(NamedTuple):
    """What the calls of one message agree in."""

    model: str
    version: str | int
    top_k: int
    low_priority: bool
    routing_key: str


# And about how long their callers wait, seconds as a power of two: a message goes on while anybody
# waits for it, and with it the work for those who have left.
Line = tuple[Asked, int]


class Answer(Protocol):
    """A future, of asyncio or of concurrent.futures."""

    def done(self) -> bool: ...
    def set_result(self, result: Response, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


@dataclass(eq=False, kw_only=True)
class Call:
    asked: Asked
    photos: Sequence[bytes]
    until: float  # its caller waits, on the monotonic clock
    answer: Answer
    patience: int = 0  # see Line
    batch: "Batch | None" = None  # once it is under way

    @property
    def line(self) -> Line:
        return self.asked, self.patience


@dataclass(eq=False)
class Batch:
    """Calls that are sent as one. cancel: ends it while it is under way."""

    line: Line
    calls: Sequence[Call]
    cancel: Callable[[], object] | None = None

    @property
    def within_s(self) -> float:
        """Until the last of its callers waits no more."""
        return max(0.0, max(call.until for call in self.calls) - time.monotonic())

    def request(self) -> pb.ClassifyRequest:
        """Raises InvalidRequest."""
        return classify_request(
            [photo for call in self.calls for photo in call.photos], *self.line[0]
        )


class Batches:
    """What is due is to be sent at once, and its end to be told by `answered` or `failed`, which
    say what is due then. Calls of one moment are best put in before anything is asked for: they
    share a message.
    """

    def __init__(self, max_batch: int, servers: int = 1) -> None:
        """max_batch: photos. servers: that take messages by turns."""
        self._max_batch = max_batch
        self._most_under_way = UNDER_WAY * servers
        self._lines: dict[Line, deque[Call]] = {}
        self._under_way: Counter[Line] = Counter()

    def put(self, call: Call) -> None:
        self._lines.setdefault(call.line, deque()).append(call)

    def leave(self, call: Call) -> Callable[[], object] | None:
        """Its caller waits no more. Returns what ends its message, where nobody else waits for it
        either."""
        if call.batch is None:
            line = self._lines[call.line]
            line.remove(call)
            if not line:
                del self._lines[call.line]
        elif all(other.answer.done() for other in call.batch.calls):
            return call.batch.cancel
        return None

    def answered(self, batch: Batch, message: pb.ClassifyResponse) -> list[Batch]:
        response, first = response_of(message), 0
        for call in batch.calls:
            results = response.results[first : first + len(call.photos)]
            first += len(call.photos)
            if call.answer.done():
                continue
            if len(results) == 1 and results[0].error is not None:  # as if it had come alone
                call.answer.set_exception(InvalidRequest(results[0].error))
            else:
                call.answer.set_result(dataclasses.replace(response, results=results))
        return self._ended(batch)

    def failed(self, batch: Batch, error: Exception) -> list[Batch]:
        """What the server does not take of several, such as more photos than it has in a call, is
        asked of it once more one by one: each of them it may take."""
        if isinstance(error, InvalidRequest) and len(batch.calls) > 1:
            alone = [Batch(batch.line, [c]) for c in batch.calls if not c.answer.done()]
            for one in alone:
                one.calls[0].batch = one
            self._under_way[batch.line] += len(alone)
            return alone + self._ended(batch)
        for call in batch.calls:
            if not call.answer.done():
                # Each its own: it gets its caller's traceback.
                own = copy.copy(error) if isinstance(error, PawprintError) else error
                call.answer.set_exception(own)
        return self._ended(batch)

    def _ended(self, batch: Batch) -> list[Batch]:
        batch.cancel, batch.calls = None, ()  # a circle: it would keep the photos
        self._under_way[batch.line] -= 1
        return self.due(batch.line)

    def due(self, line: Line, *, all_of_it: bool = False) -> list[Batch]:
        """What may go by now of what was put in; all of it, where no more comes."""
        calls, due = self._lines.get(line, deque()), []
        under_way, most = self._under_way, self._most_under_way
        while calls and (all_of_it or under_way[line] < most or self._full(calls)):
            due.append(self._first_of(calls))
            under_way[line] += 1
        if not calls:
            self._lines.pop(line, None)
        if not under_way[line]:
            del under_way[line]
        return due

    def overdue(self, call: Call) -> list[Batch]:
        """What goes with a call that has waited for LONGEST_IN_LINE_S, if it still does."""
        return self.due(call.line, all_of_it=True) if call.batch is None else []

    def _full(self, line: Sequence[Call]) -> bool:
        return sum(len(c.photos) for c in line) >= self._max_batch or _bytes(line) >= MOST_BYTES

    def _first_of(self, line: deque[Call]) -> Batch:
        """As many as go together, one at least."""
        calls = [line.popleft()]
        while line and self._fit([*calls, line[0]]):
            calls.append(line.popleft())
        batch = Batch(calls[0].line, calls)
        for call in calls:
            call.batch = batch
        return batch

    def _fit(self, calls: Sequence[Call]) -> bool:
        return sum(len(c.photos) for c in calls) <= self._max_batch and _bytes(calls) <= MOST_BYTES


def _bytes(calls: Sequence[Call]) -> int:
    return sum(len(photo) for call in calls for photo in call.photos)

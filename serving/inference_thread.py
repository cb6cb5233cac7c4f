"""The threads that run the batches of all models of a device, in turns.

A GPU has one, so that batches do not fragment. A CPU has one for each batch that is to run at the
same time: many small runs of one core each get more out of its cores than large ones that share
them. A thread forms its next batch itself, the moment the last one is done: no hop through the
event loop in between.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from serving.computing_threads import computing_threads

# Runs a batch and returns what hands the answers out. Neither may raise.
Work = Callable[[], Callable[[], object]]


class Source(Protocol):
    """What the threads draw work from. Both methods are called with their lock held."""

    def due(self) -> float:
        """When the next batch should start, on the monotonic clock; inf if nothing waits."""

    def take(self, idle: int, running: int) -> Work:
        """Form the next batch; what it returns is called without the lock.

        idle: threads with nothing to do, the one that asks among them; running: the others.
        """


class InferenceThreads:
    def __init__(self, count: int = 1) -> None:
        """Raises Unavailable where there can't be so many."""
        self.count = count
        self.changed = threading.Condition()  # guards every source; notify when one is due earlier
        self._sources: deque[Source] = deque()  # the first has its turn
        self._running = 0  # threads that run a batch
        self._closing = False
        self._threads = computing_threads("inference", count, self._loop)

    def add(self, source: Source) -> None:
        """Draw from this source too; the lock must be held."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Forget a source; the lock must be held."""
        self._sources.remove(source)

    def close(self) -> None:
        """Finish what waits, then end the threads. Blocks for as long as that takes."""
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            deliver = work()
            with self.changed:  # before the answers are out: what they cause finds a thread free
                self._running -= 1
            deliver()
            del work, deliver  # else they would keep the last batch in memory until the next one

    def _next(self) -> Work | None:
        with self.changed:
            while True:
                work, soonest = self._due()
                if work is not None or (self._closing and soonest == math.inf):
                    return work
                self.changed.wait(None if soonest == math.inf else soonest - time.monotonic())

    def _due(self) -> tuple[Work | None, float]:
        """The next work if some is due, else when it will be; the lock is held.

        Apart from `_next`, which must not keep the last source, a whole model, while it waits.
        """
        now, soonest = time.monotonic(), math.inf
        for _ in range(len(self._sources)):
            source = self._sources[0]
            self._sources.rotate(-1)
            due = source.due()
            if due <= now or (self._closing and due < math.inf):
                work = source.take(self.count - self._running, self._running)
                self._running += 1
                self.changed.notify()  # there may be more to do than this
                return work, now
            soonest = min(soonest, due)
        return None, soonest

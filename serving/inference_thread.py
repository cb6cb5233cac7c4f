"""The one thread of a device: it runs the batches of all models there, in turns.

One thread, so that batches do not fragment and models do not fight over the same cores. It forms
the next batch itself, the moment the last one is done: no hop through the event loop in between.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

Work = Callable[[], None]


class Source(Protocol):
    """What the thread draws work from. Both methods are called with the thread's lock held."""

    def due(self) -> float:
        """When the next batch should start, on the monotonic clock; inf if nothing waits."""

    def take(self) -> Work:
        """Form the next batch; what it returns is called without the lock and must not raise."""


class InferenceThread:
    def __init__(self, name: str) -> None:
        self.changed = threading.Condition()  # guards every source; notify when one is due earlier
        self._sources: deque[Source] = deque()  # the first has its turn
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def add(self, source: Source) -> None:
        """Draw from this source too; the lock must be held."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Forget a source; the lock must be held."""
        self._sources.remove(source)

    def close(self) -> None:
        """Finish what waits, then end the thread. Blocks for as long as that takes."""
        with self.changed:
            self._closing = True
            self.changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # else it would keep the last batch in memory until the next one

    def _next(self) -> Work | None:
        with self.changed:
            while True:
                now, soonest = time.monotonic(), math.inf
                for _ in range(len(self._sources)):
                    source = self._sources[0]
                    self._sources.rotate(-1)
                    due = source.due()
                    if due <= now or (self._closing and due < math.inf):
                        return source.take()
                    soonest = min(soonest, due)
                if self._closing:
                    return None
                self.changed.wait(None if soonest == math.inf else soonest - now)

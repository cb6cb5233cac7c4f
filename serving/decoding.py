"""Encoded photos to pixels, in a bounded pool of threads (Pillow lets go of the interpreter lock).

A thread hands what it has decoded straight to the batcher: the event loop, which all calls share,
is not woken for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.batching import Priority
from serving.errors import InvalidImage
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from serving.thread_priority import go_behind_the_event_loop

Job = Callable[[], object]  # may not raise


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_photos: int  # a call
    max_photo_bytes: int  # encoded
    max_pixels: int  # a photo


class Decoders:
    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=go_behind_the_event_loop
        )
        self._low = _Line(self._pool, threads)

    def start(self, jobs: Sequence[Job], priority: Priority) -> None:
        """Run the jobs of one call, in their order.

        No more of them are in the pool's queue than it has threads: the next caller's photo waits
        behind those few, not behind all. Of low priority that holds for all calls together.
        """
        line = self._low if priority is Priority.LOW else _Line(self._pool, self._threads)
        line.add(jobs)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Line:
    """Jobs of which no more than `width` are in the pool at a time: the rest follow them."""

    def __init__(self, pool: ThreadPoolExecutor, width: int) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._free = width

    def add(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            self._waiting.extend(jobs)
            begun = min(self._free, len(self._waiting))
            self._free -= begun
        for _ in range(begun):
            self._pool.submit(self._next)

    def _next(self) -> None:
        with self._lock:
            job = self._waiting.popleft() if self._waiting else _nothing
        job()
        with self._lock:
            more = bool(self._waiting)
            self._free += not more
        if more:  # at the end of the pool's queue, behind other callers' photos
            self._pool.submit(self._next)


def _nothing() -> None:
    """Another thread was quicker."""


def decode(photo: bytes, spec: Preprocessing, limits: Limits) -> npt.NDArray[np.uint8]:
    """uint8 [S, S, 3]. Raises InvalidImage."""
    if len(photo) > limits.max_photo_bytes:
        raise InvalidImage(
            f"the photo has {len(photo):,} bytes; at most {limits.max_photo_bytes:,} are allowed"
        )
    return preprocess(photo, spec, max_pixels=limits.max_pixels)

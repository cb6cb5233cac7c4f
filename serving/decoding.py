"""Encoded photos to pixels, in a bounded pool of threads (Pillow lets go of the interpreter lock).

A thread hands what it has decoded straight to the batcher: the event loop, which all calls share,
is not woken for it.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidImage
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from serving.thread_priority import go_behind_the_event_loop
from serving.turns import Priority, PriorityTurns

Job = Callable[[], object]  # may not raise


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_photos: int  # a call
    max_photo_bytes: int  # encoded
    max_pixels: int  # a photo


class Decoders:
    """Callers take turns, photo by photo, as they do for inference."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=go_behind_the_event_loop
        )
        self._lock = threading.Lock()
        self._waiting: PriorityTurns[Job] = PriorityTurns()

    def start(self, jobs: Sequence[Job], caller: Hashable, priority: Priority) -> None:
        """Run the jobs of one call, in their order."""
        with self._lock:
            for job in jobs:
                self._waiting.put(priority, caller, job)
        for _ in jobs:
            self._pool.submit(self._next)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Whose turn it is when a thread is free, whoever asked for it."""
        with self._lock:
            job = self._waiting.pop()
        job()


def decode(photo: bytes, spec: Preprocessing, limits: Limits) -> npt.NDArray[np.uint8]:
    """uint8 [S, S, 3]. Raises InvalidImage."""
    if len(photo) > limits.max_photo_bytes:
        raise InvalidImage(
            f"the photo has {len(photo):,} bytes; at most {limits.max_photo_bytes:,} are allowed"
        )
    return preprocess(photo, spec, max_pixels=limits.max_pixels)

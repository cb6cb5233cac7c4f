"""Encoded photos to pixels, in a fixed number of threads (Pillow lets go of the interpreter lock).

A thread hands what it has decoded straight to the batcher: the event loop, which all calls share,
is not woken for it.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.computing_threads import computing_threads
from serving.errors import InvalidImage
from serving.modelspec import Preprocessing
from serving.photo_formats import FORMATS
from serving.preprocess import Postponed, preprocess
from serving.turns import Priority, PriorityTurns

log = logging.getLogger(__name__)

# Calls what it is given before it decodes a large picture, and comes again later if that raises
# Postponed; it may raise nothing else.
Job = Callable[[Callable[[], object]], object]


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_photos: int  # a call
    max_photo_bytes: int  # encoded
    max_pixels: int  # a photo
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True)
class _Waiting:
    job: Job
    caller: Hashable
    priority: Priority


class Decoders:
    """Callers take turns, photo by photo, as they do for inference.

    Of large pictures one is decoded at a time, and no thread waits for that: what is postponed is
    done, by turns again, by the thread that has the large one before it.
    """

    def __init__(self, threads: int) -> None:
        """Raises Unavailable where there can't be so many."""
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: PriorityTurns[_Waiting] = PriorityTurns()
        self._postponed: PriorityTurns[_Waiting] = PriorityTurns()
        self._large = False  # one is being decoded
        self._closing = False
        self._threads = computing_threads("decoding", threads, self._loop)

    def start(self, jobs: Sequence[Job], caller: Hashable, priority: Priority) -> None:
        """Run the jobs of one call, in their order."""
        with self._changed:
            for job in jobs:
                self._waiting.put(priority, caller, _Waiting(job, caller, priority))
            self._changed.notify(len(jobs))

    def close(self) -> None:
        """Begin no further job, and end the threads. Blocks until those that run are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while self._next():
            pass

    def _next(self) -> bool:
        """Do the job whose turn it is, once there is one; False where there will be no other."""
        mine = False  # the one large picture is this thread's

        def before_large() -> None:
            nonlocal mine
            with self._changed:
                if self._large and not mine:
                    self._postponed.put(one.priority, one.caller, one)
                    raise Postponed
                self._large = mine = True

        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return False
            one = self._waiting.pop()
        while True:
            try:
                one.job(before_large)
            except Postponed:
                pass
            except Exception:  # no memory left: the large ones behind it would wait for ever
                log.exception("a photo was not decoded")
            if not mine:
                return True
            with self._changed:
                if self._closing or not self._postponed:
                    self._large = False
                    return True
                one = self._postponed.pop()


def decode(
    photo: bytes, spec: Preprocessing, limits: Limits, before_large: Callable[[], object]
) -> npt.NDArray[np.uint8]:
    """uint8 [S, S, 3]. before_large: see preprocess. Raises InvalidImage."""
    if len(photo) > limits.max_photo_bytes:
        raise InvalidImage(
            f"the photo has {len(photo):,} bytes; at most {limits.max_photo_bytes:,} are allowed"
        )
    return preprocess(
        photo,
        spec,
        max_pixels=limits.max_pixels,
        formats=limits.formats,
        before_large=before_large,
    )

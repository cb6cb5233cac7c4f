"""The core of every call: photos in, labels or the model's own outputs out. Knows nothing of gRPC.

Admission comes before decoding; decoding happens in a bounded pool of threads (Pillow lets go of
the interpreter lock); a photo that can't be read is an error of that photo alone.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.answers import Label
from serving.batching import Answer, Priority
from serving.catalogue import ServedVersion
from serving.errors import InvalidImage, InvalidRequest
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from serving.shadowing import Shadowing
from serving.thread_priority import go_behind_the_event_loop


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_photos: int  # a call
    max_photo_bytes: int  # encoded
    max_pixels: int  # a photo


Photo = bytes | npt.NDArray[np.uint8]  # encoded, or the very pixels: [S, S, 3]


@dataclass(frozen=True, kw_only=True)
class Inferred:
    answers: tuple[Answer | InvalidImage, ...]  # one for each photo
    decode_s: float  # summed over the photos
    queue_s: float  # longest of a photo
    inference_s: float  # longest of a batch
    decoded: float  # when the last photo was, on the monotonic clock
    answered: float  # when the last answer was there


@dataclass(frozen=True, kw_only=True)
class Classified:
    results: tuple[tuple[Label, ...] | InvalidImage, ...]  # a photo's labels, best first
    inferred: Inferred


class Classifier:
    def __init__(self, decode_threads: int, limits: Limits) -> None:
        self.limits = limits
        self._pool = ThreadPoolExecutor(
            decode_threads, thread_name_prefix="decode", initializer=go_behind_the_event_loop
        )
        self._decode_threads = decode_threads
        self.shadowing = Shadowing()
        # No more photos of low priority are in the pool's queue, of however many calls.
        self._low_priority = asyncio.Semaphore(decode_threads)

    def close(self) -> None:
        self.shadowing.close()
        self._pool.shutdown(cancel_futures=True)

    async def classify(
        self,
        served: ServedVersion,
        photos: Sequence[Photo],
        *,
        top_k: int,
        deadline: float,
        caller: Hashable = None,
        priority: Priority = Priority.HIGH,
    ) -> Classified:
        """top_k: 0 means 1. deadline: on the monotonic clock. caller: see Batcher.admit.

        Raises InvalidRequest, Overloaded, DeadlineExceeded; InvalidImage if the only photo of the
        call can't be read.
        """
        labels = served.engine.manifest.labels
        if not 0 <= top_k <= len(labels):
            raise InvalidRequest(
                f"top_k must be 0 to {len(labels)}, the number of labels; got {top_k}"
            )
        inferred = await self.infer(
            served, photos, deadline=deadline, caller=caller, priority=priority
        )
        results = tuple(
            answer
            if isinstance(answer, InvalidImage)
            else best_labels(answer.outputs[0], labels, top_k or 1)
            for answer in inferred.answers
        )
        return Classified(results=results, inferred=inferred)

    async def infer(
        self,
        served: ServedVersion,
        photos: Sequence[Photo],
        *,
        deadline: float,
        caller: Hashable = None,
        priority: Priority = Priority.HIGH,
    ) -> Inferred:
        """As classify, but with the rows of the model's outputs."""
        if not photos:
            raise InvalidRequest("the call holds no photos; send at least one")
        if len(photos) > self.limits.max_photos:
            raise InvalidRequest(
                f"the call holds {len(photos)} photos; at most {self.limits.max_photos} are "
                "allowed: split it, or use ClassifyStream"
            )
        decode_s = 0.0
        outcomes: list[asyncio.Future[Answer] | InvalidImage] = []
        with served.batcher.admit(
            len(photos), deadline=deadline, caller=caller, priority=priority
        ) as call:
            spec = served.engine.manifest.preprocessing
            async for pixels, seconds in self._decoded(photos, spec, priority):
                decode_s += seconds
                if isinstance(pixels, InvalidImage):
                    call.skip()
                    outcomes.append(pixels)
                else:
                    outcomes.append(call.put(pixels))
            decoded = time.monotonic()
            if len(outcomes) == 1 and isinstance(outcomes[0], InvalidImage):
                raise outcomes[0]
            answers = [
                outcome if isinstance(outcome, InvalidImage) else await outcome
                for outcome in outcomes
            ]
        if served.shadow is not None:
            self.shadowing.copy(served, answers, functools.partial(self._copy, photos))
        answered = [answer for answer in answers if isinstance(answer, Answer)]
        return Inferred(
            answers=tuple(answers),
            decode_s=decode_s,
            queue_s=max((answer.queue_s for answer in answered), default=0.0),
            inference_s=max((answer.run_s for answer in answered), default=0.0),
            decoded=decoded,
            answered=time.monotonic(),
        )

    async def _copy(
        self, photos: Sequence[Photo], served: ServedVersion, deadline: float
    ) -> Sequence[Answer | InvalidImage]:
        side = served.engine.manifest.preprocessing.size
        if any(isinstance(photo, np.ndarray) and len(photo) != side for photo in photos):
            raise InvalidRequest(f"pixels of another size than {side} can't be copied")
        copied = await self.infer(served, photos, deadline=deadline, priority=Priority.LOW)
        return copied.answers

    async def _decoded(
        self, photos: Sequence[Photo], spec: Preprocessing, priority: Priority
    ) -> AsyncIterator[tuple[npt.NDArray[np.uint8] | InvalidImage, float]]:
        """Pixels, or why there are none, with the seconds it took, in the order of the photos.

        No more photos of one call are in the pool's queue than it has threads: the next caller's
        photo waits behind those few, not behind all.
        """
        loop = asyncio.get_running_loop()
        under_way: deque[asyncio.Future[tuple[npt.NDArray[np.uint8] | InvalidImage, float]]]
        under_way = deque()
        try:
            for photo in photos:
                if isinstance(photo, np.ndarray):
                    yield photo, 0.0
                    continue
                if len(under_way) == self._decode_threads:
                    yield await under_way.popleft()
                if priority is Priority.LOW:
                    await self._low_priority.acquire()
                future = loop.run_in_executor(self._pool, _decode, photo, spec, self.limits)
                if priority is Priority.LOW:
                    future.add_done_callback(lambda _: self._low_priority.release())
                under_way.append(future)
            while under_way:
                yield await under_way.popleft()
        finally:
            for future in under_way:
                future.cancel()


def _decode(
    photo: bytes, spec: Preprocessing, limits: Limits
) -> tuple[npt.NDArray[np.uint8] | InvalidImage, float]:
    start = time.monotonic()
    result: npt.NDArray[np.uint8] | InvalidImage
    try:
        if len(photo) > limits.max_photo_bytes:
            raise InvalidImage(
                f"the photo has {len(photo):,} bytes; at most {limits.max_photo_bytes:,} "
                "are allowed"
            )
        result = preprocess(photo, spec, max_pixels=limits.max_pixels)
    except InvalidImage as error:
        result = error
    return result, time.monotonic() - start


def best_labels(
    probabilities: npt.NDArray[np.float32], labels: Sequence[str], top_k: int
) -> tuple[Label, ...]:
    """probabilities: float32 [K]. The `top_k` most probable, best first; the earlier one of two."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(
        Label(name=labels[i], index=int(i), probability=float(probabilities[i])) for i in order
    )

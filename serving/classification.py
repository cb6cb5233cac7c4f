"""The core of every call: photos in, the model's outputs out. Knows nothing of gRPC.

Admission comes before decoding; a photo that can't be read is an error of that photo alone.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.answers import Label
from serving.batching import Answer, Place, too_late
from serving.catalogue import ServedVersion
from serving.decoding import Decoders, Limits, decode
from serving.errors import InvalidImage, InvalidRequest
from serving.modelspec import Preprocessing
from serving.preprocess import Postponed
from serving.shadowing import Shadowing
from serving.turns import Priority

Admitted = Callable[[], None]
Photo = bytes | npt.NDArray[np.uint8]  # encoded, or the very pixels: [S, S, 3]


@dataclass(frozen=True, kw_only=True)
class Inferred:
    answers: tuple[Answer | InvalidImage, ...]  # one for each photo
    unfamiliar: int | None  # photos; None where the version can't tell
    decode_s: float  # summed over the photos
    queue_s: float  # longest of a photo
    inference_s: float  # longest of a batch
    decoded: float  # when the last photo was, on the monotonic clock
    answered: float  # when the last answer was there


class Classifier:
    def __init__(self, decode_threads: int, limits: Limits) -> None:
        self.limits = limits
        self._decoders = Decoders(decode_threads)
        self.shadowing = Shadowing()

    async def close(self) -> None:
        """Takes as long as photos that are being decoded."""
        self.shadowing.close()
        await asyncio.to_thread(self._decoders.close)

    async def infer(
        self,
        served: ServedVersion,
        photos: Sequence[Photo],
        *,
        admitted: Admitted,
        deadline: float,
        caller: Hashable = None,
        priority: Priority = Priority.HIGH,
        streamed: bool = False,
    ) -> Inferred:
        """admitted: called once there is room for the call, before any decoding; what it raises
        ends the call. deadline: on the monotonic clock. caller: see Batcher.admit. streamed: it
        waits for room; there is a caller then.

        Raises InvalidRequest, Overloaded, DeadlineExceeded; InvalidImage if the only photo of the
        call can't be read; Unavailable where there is too little memory to decode one.
        """
        check_count(len(photos), self.limits.max_photos)
        spec = served.engine.manifest.preprocessing
        decoded: list[tuple[float, float]] = []  # seconds it took, and when it was done
        batcher, count = served.batcher, len(photos)
        if streamed:
            entered = await batcher.admit_in_turn(
                count, deadline=deadline, caller=caller, priority=priority
            )
        else:
            entered = batcher.admit(count, deadline=deadline, caller=caller, priority=priority)
        with entered as call:
            admitted()
            began = time.monotonic()
            places, jobs = [], []
            for photo in photos:
                places.append(call.place())
                if isinstance(photo, np.ndarray):
                    places[-1].fill(photo)
                else:
                    jobs.append(
                        functools.partial(_decode, photo, spec, self.limits, places[-1], decoded)
                    )
            self._decoders.start(jobs, call.caller, priority)
            answers = [await _answer(place, alone=len(places) == 1) for place in places]
        self.shadowing.copy(served, answers, functools.partial(self._copy, photos))
        answered = [answer for answer in answers if isinstance(answer, Answer)]
        known = served.engine.familiarity
        return Inferred(
            answers=tuple(answers),
            unfamiliar=None
            if known is None
            else sum(known.tells(familiarity_of(answer)) for answer in answered),
            decode_s=sum(seconds for seconds, _ in decoded),
            queue_s=max((answer.queue_s for answer in answered), default=0.0),
            inference_s=max((answer.run_s for answer in answered), default=0.0),
            decoded=max((done for _, done in decoded), default=began),
            answered=time.monotonic(),
        )

    async def _copy(
        self, photos: Sequence[Photo], served: ServedVersion, deadline: float
    ) -> Sequence[Answer | InvalidImage]:
        side = served.engine.manifest.preprocessing.size
        if any(isinstance(photo, np.ndarray) and len(photo) != side for photo in photos):
            raise InvalidRequest(f"pixels of another size than {side} can't be copied")
        copied = await self.infer(
            served, photos, admitted=_free, deadline=deadline, priority=Priority.LOW
        )
        return copied.answers


def check_count(photos: int, most: int) -> None:
    """Raises InvalidRequest if a call may not have so many photos."""
    if not photos:
        raise InvalidRequest("the call holds no photos; send at least one")
    if photos > most:
        raise InvalidRequest(
            f"the call holds {photos} photos; at most {most} are allowed: split it, or use a stream"
        )


def _free() -> None:
    """What a copy of a call costs its caller."""


async def _answer(place: Place, *, alone: bool) -> Answer | InvalidImage:
    """alone: a photo that can't be read fails the call."""
    try:
        return await place.answer
    except InvalidImage as error:
        if alone:
            raise
        return error


def _decode(
    photo: bytes,
    spec: Preprocessing,
    limits: Limits,
    place: Place,
    decoded: list[tuple[float, float]],
    before_large: Callable[[], object],
) -> None:
    """Fill `place`, unless the answer would come too late or to nobody."""
    begun = time.monotonic()
    if place.call.left:
        return
    if place.call.deadline <= begun:
        place.fail(too_late())
        return

    def done() -> None:
        now = time.monotonic()
        decoded.append((now - begun, now))

    try:
        pixels = decode(photo, spec, limits, before_large)
    except Postponed:
        raise
    except InvalidImage as error:
        done()
        # Without the frames that it came through: they hold the photo and the place, and the place
        # would hold them until the garbage collector comes by.
        place.fail(InvalidImage(str(error)))
    except Exception as error:  # the caller's, whatever it is
        done()
        place.fail(error)
    else:
        done()
        place.fill(pixels)


def familiarity_of(answer: Answer) -> float:
    """Of a version that gives it."""
    return float(answer.outputs[2][0])


def best_labels(
    probabilities: npt.NDArray[np.float32], labels: Sequence[str], top_k: int
) -> tuple[Label, ...]:
    """probabilities: float32 [K]. The `top_k` most probable, best first; the earlier one of two."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(
        Label(name=labels[i], index=int(i), probability=float(probabilities[i])) for i in order
    )

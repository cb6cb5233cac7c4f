"""Copies of calls for another version, whose answers are compared with those given and counted."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence

import numpy as np

from serving.batching import Answer
from serving.catalogue import ServedVersion
from serving.errors import InvalidImage, Overloaded, PawprintError

log = logging.getLogger(__name__)

# Copies at once; a call that comes while there are so many is not copied, but counted as skipped,
# and so is one for which the shadow has no room.
MAX_IN_FLIGHT = 16
# A copy that takes longer is given up.
TIMEOUT_S = 30.0

OUTCOMES = ("agreed", "differed", "failed", "skipped")

Answers = Sequence[Answer | InvalidImage]
Ask = Callable[[ServedVersion, float], Awaitable[Answers]]  # version, deadline -> answers


class Shadowing:
    """Its methods belong to the event loop; `counts` may be read from any thread.

    counts: photos by model, the version that answered, the one that got the copy, and the outcome:
    agreed or differed (in the first label), failed, or skipped. Of a photo that can't be read there
    is nothing to compare.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int, int, str]] = Counter()
        self._copies: set[asyncio.Task[None]] = set()

    def copy(self, served: ServedVersion, answers: Answers, ask: Ask) -> None:
        """Ask the shadow of `served`, if there is one, for its share of the calls, and forget it:
        what becomes of the copy never reaches the caller."""
        shadow, readable = served.shadow, _readable(answers)
        if shadow is None or not readable or random.random() >= shadow.share:
            return
        if len(self._copies) == MAX_IN_FLIGHT:
            self._count(served, shadow.served, "skipped", readable)
            return
        task = asyncio.ensure_future(self._compare(served, shadow.served, answers, ask))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    def keep_only(self, served: Collection[tuple[str, int]]) -> None:
        """Forget the counts of all other versions, and those of other shadows."""
        for key in [*self.counts]:
            model, version, shadow, _ = key
            if not {(model, version), (model, shadow)} <= {*served}:
                del self.counts[key]

    def close(self) -> None:
        for task in self._copies:
            task.cancel()

    async def _compare(
        self, served: ServedVersion, shadow: ServedVersion, answers: Answers, ask: Ask
    ) -> None:
        try:
            others = await ask(shadow, time.monotonic() + TIMEOUT_S)
        except Exception as error:
            if not isinstance(error, PawprintError):
                log.error("a copy of a call failed", exc_info=error)
            outcome = "skipped" if isinstance(error, Overloaded) else "failed"
            self._count(served, shadow, outcome, _readable(answers))
            return
        for answer, other in zip(answers, others, strict=True):
            if isinstance(answer, Answer):
                label, other_label = _label(served, answer), _label(shadow, other)
                self._count(served, shadow, "agreed" if label == other_label else "differed", 1)

    def _count(self, served: ServedVersion, shadow: ServedVersion, outcome: str, n: int) -> None:
        manifest = served.engine.manifest
        key = (manifest.name, manifest.version, shadow.engine.manifest.version, outcome)
        self.counts[key] += n


def _readable(answers: Answers) -> int:
    return sum(isinstance(answer, Answer) for answer in answers)


def _label(served: ServedVersion, answer: Answer | InvalidImage) -> str | None:
    """The first label, by name: two versions may have their labels in another order."""
    if isinstance(answer, InvalidImage):
        return None
    return served.engine.manifest.labels[int(np.argmax(answer.outputs[0]))]

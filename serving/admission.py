"""Who is let in: for how many photos there is room, and whether the answer can come in time.

How fast photos are answered is learnt from how fast they are, decoding and all, while others wait.
"""

import math
import time
from collections import Counter
from collections.abc import Hashable

from serving.errors import DeadlineExceeded, Overloaded
from serving.turns import Priority

# A full server is not asked again sooner, even where answers take no time; nor much later, for
# not all that were refused come back.
RETRY_AFTER_AT_LEAST_S, RETRY_AFTER_AT_MOST_S = 0.05, 60.0
_SMOOTHING = 0.05  # weight of the newest photo in the running estimate of seconds per photo
# An answer comes with the last of its batch, and estimates are off: one that comes a moment too
# late is work for nobody.
_MARGIN = 1.1


class Admission:
    """Belongs to the event loop."""

    def __init__(self, max_queue: int) -> None:
        self.photos = 0  # let in, their calls not yet gone
        self.photo_s = 0.0  # seconds from one answered photo to the next while others wait
        self._max_queue = max_queue
        self._of: tuple[Counter[Hashable], ...] = tuple(Counter() for _ in Priority)
        self._streamed: Counter[Priority] = Counter()  # those of them that streams have
        self._promised = -math.inf  # when the last refused call was told to come back
        self._since = math.inf  # the last answer, or the first photo after a pause

    @property
    def has_room_for_streams(self) -> bool:
        """They take no more than half, so that other calls find places however many wait."""
        streamed = self._streamed[Priority.HIGH] + self._streamed[Priority.LOW]
        return streamed < (self._max_queue + 1) // 2 and self.photos < self._max_queue

    def has_room(self, caller: Hashable, priority: Priority) -> bool:
        """Whether a request of a stream may enter, where streams may: of their half those of low
        priority take no more than half.

        It comes in whole while any place is left: one of many photos would else wait for ever.
        """
        low_may = self._streamed[Priority.LOW] < max(1, self._max_queue // 4)
        return (low_may or priority is Priority.HIGH) and self._free(caller, priority) > 0

    def enter(
        self,
        photos: int,
        deadline: float,
        caller: Hashable,
        priority: Priority,
        *,
        streamed: bool = False,
    ) -> None:
        """Let a call in. deadline: on the monotonic clock. streamed: a request of a stream, which
        had room.

        Raises Overloaded if there is no room, or so much to do that the deadline would pass;
        DeadlineExceeded if it has passed.
        """
        now = time.monotonic()
        if deadline <= now:
            raise DeadlineExceeded("the deadline passed before the call was begun")
        free = self._free(caller, priority)
        if photos > free and not streamed:
            raise Overloaded(
                f"the queue is full: {photos} photos asked for, {free} of {self._max_queue} places "
                "free for this caller; try again later",
                retry_after_s=self._promise(photos, now),
            )
        left_s = deadline - now
        if self._answered_in_s(self.photos + photos) > left_s:
            self._refuse_hopeless(photos, caller, priority, left_s)
        if self.photos == 0:
            self._since = now
        self.photos += photos
        self._of[priority][caller] += photos
        self._streamed[priority] += photos * streamed

    def leave(
        self, photos: int, caller: Hashable, priority: Priority, *, streamed: bool = False
    ) -> None:
        self.photos -= photos
        self._streamed[priority] -= photos * streamed
        of = self._of[priority]
        of[caller] -= photos
        if not of[caller]:
            del of[caller]

    def answered(self, photos: int, at: float) -> None:
        """So many more, at this time; that may be before the last call entered, if they are of one
        that left while its batch ran.

        A photo alone takes longer than one of many: where no others wait the estimate is no higher
        than that, and is not raised.
        """
        photo_s = max(0.0, at - self._since) / photos
        self._since = at
        if self.photos >= 2 * photos:
            weight = 1 - (1 - _SMOOTHING) ** photos if self.photo_s else 1.0
            self.photo_s += weight * (photo_s - self.photo_s)
        else:
            self.photo_s = min(self.photo_s, photo_s)

    def _free(self, caller: Hashable, priority: Priority) -> int:
        """Places that it may take: whoever has some leaves as many free, for callers to come."""
        free = self._max_queue - self.photos - sum(of[caller] for of in self._of)
        low = self._of[Priority.LOW]
        if priority is Priority.LOW and low:  # the first call may have any size
            free = min(free, self._max_queue // 2 - low.total())
        return max(0, free)

    def _answered_in_s(self, photos: int) -> float:
        return _MARGIN * photos * self.photo_s

    def _drained_in_s(self) -> float:
        return max(RETRY_AFTER_AT_LEAST_S, self.photos * self.photo_s)

    def _promise(self, photos: int, now: float) -> float:
        """Seconds after which a call that found the queue full should come back.

        Each is told a time of its own, one after another as fast as photos are answered, the first
        when the queue is half empty. Were all told the same, most would be refused again and again,
        and refusals in such numbers take the time that answers need.
        """
        next_free = max(self._promised, now + self._drained_in_s() / 2) + photos * self.photo_s
        self._promised = min(next_free, now + RETRY_AFTER_AT_MOST_S)
        return max(RETRY_AFTER_AT_LEAST_S, self._promised - now)

    def _refuse_hopeless(
        self, photos: int, caller: Hashable, priority: Priority, left_s: float
    ) -> None:
        """Raises Overloaded if what is here now would take longer than the caller does.

        Where nothing is, the call is tried, whatever the estimate: only answers can correct it.
        """
        high, low = self._of
        if priority is Priority.HIGH:
            ahead = _ahead(high, photos, caller)
        else:
            ahead = high.total() + _ahead(low, photos, caller)
        wait_s = self._answered_in_s(ahead + photos)
        if ahead and wait_s > left_s:
            raise Overloaded(
                f"the answer would come in {wait_s:.2g} s, after the deadline of the call in "
                f"{left_s:.2g} s; try again later, or with more time",
                retry_after_s=self._drained_in_s(),
            )


def _ahead(of: Counter[Hashable], photos: int, caller: Hashable) -> int:
    """How many come before the last of a caller's new `photos`: all that it has, and as many of
    each other one, as they take turns."""
    turns = of[caller] + photos
    return sum(min(count, turns) for count in of.values())

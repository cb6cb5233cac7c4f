"""Places that callers hold, so divided that no caller can take them all."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import Overloaded

_BUSY_RETRY_S = 0.1


@dataclass(eq=False)
class Held:
    """A place that a call holds."""

    low: bool = False  # of low priority


@dataclass(eq=False, kw_only=True)
class InLine(Held):
    """One that is waited for."""

    turn: str | None
    low: bool
    let_in: asyncio.Future[None]  # done once the place is held


class Shares:
    """Belongs to the event loop. Whose token holds some places leaves as many free. All work of low
    priority takes no more than half, nor does all that waits in line for its place; of that, what
    is low takes no more than half, so that what is not need not wait until it is done."""

    def __init__(self, most: int, what: str, hint: str) -> None:
        """what: the places and what is done with them, such as "calls are being answered"; hint:
        what a caller who is refused may do."""
        self._most, self._what, self._hint = most, what, hint
        self._half, self._quarter = max(1, most // 2), max(1, most // 4)
        self._held: Counter[str | None] = Counter()  # by whose turn
        self._low = 0
        self._line: dict[InLine, None] = {}  # who waits, in the order in which they came
        self._from_line: set[InLine] = set()  # who has waited, and holds a place now
        self._low_from_line = 0

    def total(self) -> int:
        return self._held.total()

    @contextmanager
    def one(self, turn: str | None) -> Iterator[Held]:
        """turn: None for a caller without a token. Raises Overloaded."""
        if not self._free(turn):
            whose = f", {self._held[turn]} of this token" if turn else ""
            raise Overloaded(
                f"{self.total()} of {self._most} {self._what}{whose}; {self._hint}",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._held[turn] += 1
        held = Held()
        try:
            yield held
        finally:
            self._give_back(held, turn)

    def join(self, turn: str | None, *, low: bool = False) -> InLine:
        """Wait in line where `one` and `lower` would refuse; there may be a place at once."""
        held = InLine(turn=turn, low=low, let_in=asyncio.get_running_loop().create_future())
        self._line[held] = None
        self._let_in()
        return held

    def leave(self, held: InLine) -> None:
        """Give the place back, or leave the line; whoever has left may do so again."""
        if held in self._line:
            del self._line[held]
            held.let_in.cancel()
        elif held in self._from_line:
            self._from_line.remove(held)
            self._low_from_line -= held.low
            self._give_back(held, held.turn)

    def lower(self, held: Held) -> None:
        """From now on this place is one of low priority. Raises Overloaded if these hold half."""
        if held.low:
            return
        if self._low >= self._half:
            raise Overloaded(
                f"{self._low} of {self._half} {self._what} that may be of low priority; "
                f"{self._hint}",
                retry_after_s=_BUSY_RETRY_S,
            )
        held.low = True
        self._low += 1

    def _free(self, turn: str | None) -> bool:
        own = self._held[turn] if turn else 0
        return self._most - self.total() - own >= 1

    def _give_back(self, held: Held, turn: str | None) -> None:
        self._low -= held.low
        self._held[turn] -= 1
        if not self._held[turn]:
            del self._held[turn]
        self._let_in()

    def _let_in(self) -> None:
        """Whoever waits and may have a place now."""
        while self._line and len(self._from_line) < self._half:
            low_may = self._low < self._half and self._low_from_line < self._quarter
            # One that is done is cancelled, and about to leave.
            may = (
                one
                for one in self._line
                if (low_may or not one.low) and self._free(one.turn) and not one.let_in.done()
            )
            first = next(may, None)
            if first is None:
                return
            del self._line[first]
            self._from_line.add(first)
            self._low += first.low
            self._low_from_line += first.low
            self._held[first.turn] += 1
            first.let_in.set_result(None)

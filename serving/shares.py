"""Places that callers hold, so divided that no caller can take them all."""

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


class Shares:
    """Belongs to the event loop. Whose token holds some places leaves as many free, and so does all
    work of low priority together."""

    def __init__(self, most: int, what: str, hint: str) -> None:
        """what: the places and what is done with them, such as "calls are being answered"; hint:
        what a caller who is refused may do."""
        self._most, self._what, self._hint = most, what, hint
        self._held: Counter[str | None] = Counter()  # by whose turn
        self._low = 0

    def total(self) -> int:
        return self._held.total()

    @contextmanager
    def one(self, turn: str | None) -> Iterator[Held]:
        """turn: None for a caller without a token. Raises Overloaded."""
        own = self._held[turn] if turn else 0
        if self._most - self.total() - own < 1:
            whose = f", {own} of this token" if turn else ""
            raise Overloaded(
                f"{self.total()} of {self._most} {self._what}{whose}; {self._hint}",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._held[turn] += 1
        held = Held()
        try:
            yield held
        finally:
            self._low -= held.low
            self._held[turn] -= 1
            if not self._held[turn]:
                del self._held[turn]

    def lower(self, held: Held) -> None:
        """From now on this place is one of low priority. Raises Overloaded if these hold half."""
        most = max(1, self._most // 2)
        if self._low >= most:
            raise Overloaded(
                f"{self._low} of {most} {self._what} that may be of low priority; {self._hint}",
                retry_after_s=_BUSY_RETRY_S,
            )
        held.low = True
        self._low += 1

"""Queues in which callers take turns: one caller's 64 items do not hold up another's one."""

import enum
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

# So that low priority never stands still: at least one item in so many, while any waits.
LOW_EVERY = 16


class Priority(enum.IntEnum):
    HIGH = 0
    LOW = 1


class Turns(Generic[T]):
    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[T]] = {}  # caller -> items; the first has its turn
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, caller: Hashable, item: T) -> None:
        self._lines.setdefault(caller, deque()).append(item)
        self._size += 1

    def pop(self) -> T:
        """The next item of the caller who has its turn, which then goes to the next caller."""
        return self._pop(next(iter(self._lines)))

    def pop_if(self, may: Callable[[T], bool]) -> T | None:
        """As pop, of the first caller whose next item `may` be taken; None where none may."""
        may_go = (caller for caller, line in self._lines.items() if may(line[0]))
        caller = next(may_go, None)
        return None if caller is None else self._pop(caller)

    def _pop(self, caller: Hashable) -> T:
        line = self._lines.pop(caller)
        item = line.popleft()
        if line:
            self._lines[caller] = line
        self._size -= 1
        return item

    def drop(self, caller: Hashable, gone: Callable[[T], bool]) -> None:
        """Without those items of a caller that are `gone`; its turn is not lost."""
        line = self._lines.get(caller, deque())
        kept = deque(item for item in line if not gone(item))
        self._size -= len(line) - len(kept)
        if kept:
            self._lines[caller] = kept
        else:
            self._lines.pop(caller, None)


class PriorityTurns(Generic[T]):
    """Turns of two priorities: the low one takes what the high one leaves, and a small share."""

    def __init__(self) -> None:
        self._turns: tuple[Turns[T], ...] = tuple(Turns() for _ in Priority)
        self._since_low = 0  # items of high priority taken since the last of low priority

    def __len__(self) -> int:
        return sum(map(len, self._turns))

    def put(self, priority: Priority, caller: Hashable, item: T) -> None:
        self._turns[priority].put(caller, item)

    def pop(self) -> T:
        high, low = self._turns
        if high and not (low and self._since_low >= LOW_EVERY - 1):
            self._since_low += 1
            return high.pop()
        self._since_low = 0
        return low.pop()

    def drop(self, priority: Priority, caller: Hashable, gone: Callable[[T], bool]) -> None:
        self._turns[priority].drop(caller, gone)

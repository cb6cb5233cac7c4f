"""A queue in which callers take turns: one caller's 64 items do not hold up another's one."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


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
        caller = next(iter(self._lines))
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

    def ahead_of(self, items: int) -> int:
        """How many of what is here would come before the last of a new caller's `items`."""
        if self._size <= items:
            return self._size
        return sum(min(len(line), items) for line in self._lines.values())

"""Places that callers hold: whatever comes and goes, they are divided as they should be."""

import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from serving.errors import Overloaded
from serving.shares import Held, InLine, Shares

MOST, HALF, QUARTER = 12, 6, 3
STEPS = ["one", "join", "lower", "leave"] * 2 + ["cancel"]


@dataclass(eq=False)
class Caller:
    turn: str | None
    held: Held
    stack: ExitStack | None = None  # None: it came by the line

    @property
    def by_line(self) -> bool:
        return self.stack is None


def may(turn: str | None, inside: list[Caller]) -> bool:
    own = sum(one.turn == turn for one in inside) if turn else 0
    return len(inside) + own < MOST


def may_leave_the_line(one: Caller, inside: list[Caller]) -> bool:
    waited = [other for other in inside if other.by_line]
    if one.held.low:
        of_waited = sum(other.held.low for other in waited)
        if of_waited >= QUARTER or sum(other.held.low for other in inside) >= HALF:
            return False
    return len(waited) < HALF and may(one.turn, inside)


@pytest.mark.parametrize("seed", range(3))
async def test_callers_in_any_order_have_the_places_that_they_may(seed: int) -> None:
    """Counted anew after each step, from who is there."""
    generator = random.Random(seed)
    shares = Shares(MOST, "places are taken", "try again later")
    inside: list[Caller] = []
    line: list[Caller] = []
    seen: Counter[str] = Counter()

    def leave(one: Caller) -> None:
        (inside if one in inside else line).remove(one)
        if isinstance(one.held, InLine):
            shares.leave(one.held)
            shares.leave(one.held)  # again, as it may
            assert one.held.let_in.done()  # nobody waits for it any longer
        elif one.stack:
            one.stack.close()

    for _ in range(2000):
        turn = generator.choice([None, "a", "b", "c"])
        step = generator.choice(STEPS)
        if step == "one":
            free, stack = may(turn, inside), ExitStack()
            try:
                inside.append(Caller(turn, stack.enter_context(shares.one(turn)), stack))
            except Overloaded:
                assert not free
                seen["refused"] += 1
            else:
                assert free
        elif step == "join" and len(line) < 12:
            line.append(Caller(turn, shares.join(turn, low=generator.random() < 0.5)))
        elif step == "lower" and inside:
            one, low = generator.choice(inside), [other for other in inside if other.held.low]
            if one.by_line and one not in low:
                continue  # such a place is of low priority from the start, or never
            try:
                shares.lower(one.held)
            except Overloaded:
                assert one not in low and len(low) == HALF
                seen["not lowered"] += 1
            else:
                assert one in low or len(low) < HALF
        elif step == "cancel" and line:
            one = generator.choice(line)
            assert isinstance(one.held, InLine)
            one.held.let_in.cancel()  # its caller has gone, and will leave
        elif step == "leave" and inside + line:
            leave(generator.choice(inside + line))
        waits = [one for one in line if not one.held.let_in.cancelled()]
        while first := next((one for one in waits if may_leave_the_line(one, inside)), None):
            waits.remove(first)
            line.remove(first)
            inside.append(first)
            seen["let in"] += 1
        assert [one.held.let_in.done() for one in waits] == [False] * len(waits)
        assert all(one.held.let_in.done() for one in inside if isinstance(one.held, InLine))
        assert shares.total() == len(inside)
    assert min(seen[what] for what in ("refused", "not lowered", "let in")) > 20
    for one in [*line, *inside]:
        leave(one)
    assert shares.total() == 0 and not (shares._held or shares._line or shares._from_line)


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_few_places_are_had_by_whoever_comes(most: int) -> None:
    shares = Shares(most, "places are taken", "try again later")
    waited = shares.join("a", low=True)
    assert waited.let_in.done()
    shares.leave(waited)
    with shares.one("a") as held:
        shares.lower(held)

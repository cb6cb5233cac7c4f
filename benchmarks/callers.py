"""Callers of a server, whichever it is: each asks for the next item when it has its answer.

Needs nothing but numpy, so that it runs in the environments of other clients too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

WARM = 32
READY_S = 120


async def until_ready(ready: Callable[[], Awaitable[bool]]) -> None:
    """`ready`: False until the server answers. Raises TimeoutError."""
    until = time.monotonic() + READY_S
    while not await ready():
        if time.monotonic() > until:
            raise TimeoutError("the server is not ready")
        await asyncio.sleep(0.2)


async def measured(
    ask: Callable[[T], Awaitable[object]], items: Sequence[T], callers: int
) -> dict[str, float]:
    """Photos a second, p50 and p99, after the first few were asked for once to warm up."""
    taken: list[float] = []

    async def all_of(some: Sequence[T]) -> float:
        waiting = iter(some)

        async def caller() -> None:
            for item in waiting:
                begin = time.perf_counter()
                await ask(item)
                taken.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - begin

    await all_of(items[:WARM])
    taken.clear()
    seconds = await all_of(items)
    p50, p99 = (1e3 * float(np.quantile(taken, q)) for q in (0.5, 0.99))
    return {"photos_s": len(items) / seconds, "p50_ms": p50, "p99_ms": p99}

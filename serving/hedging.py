"""Hedged calls: a second attempt where the first is slow, and the faster answer counts.

"The Tail at Scale" (Dean and Barroso 2013, section "Within Request Short-Term Adaptations"). gRPC's
own hedging policy is not in its C core, on which Python stands. With round_robin the second attempt
goes to another server.
"""

import asyncio
import queue
from typing import Any

import grpc


def hedged(method: Any, request: Any, timeout_s: float, hedge_after_s: float) -> Any:
    """The first answer of one or two attempts. Raises grpc.RpcError where the request itself is at
    fault, and once both have failed: that of the first to fail."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def attempt(within_s: float) -> Any:
        call = method.future(request, timeout=within_s)
        call.add_done_callback(ended.put)
        return call

    calls = [attempt(timeout_s)]
    try:
        try:
            first = ended.get(timeout=hedge_after_s)
        except queue.Empty:
            calls.append(attempt(timeout_s - hedge_after_s))
            first = ended.get()
        if len(calls) > 1 and first.code() not in _SETTLED:
            other = ended.get()
            if other.code() in _SETTLED:
                first = other
        return first.result()
    finally:
        for call in calls:
            call.cancel()


async def hedged_async(method: Any, request: Any, timeout_s: float, hedge_after_s: float) -> Any:
    """As `hedged`, for asyncio."""
    calls: list[Any] = []
    ended: list[asyncio.Task[grpc.StatusCode]] = []

    def attempt(within_s: float) -> None:
        calls.append(method(request, timeout=within_s))
        ended.append(asyncio.ensure_future(calls[-1].code()))

    try:
        attempt(timeout_s)
        await asyncio.wait(ended, timeout=hedge_after_s)
        if not ended[0].done():
            attempt(timeout_s - hedge_after_s)
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        first = 0 if ended[0].done() else 1
        if len(calls) > 1 and ended[first].result() not in _SETTLED:
            if await ended[1 - first] in _SETTLED:
                first = 1 - first
        return await calls[first]
    finally:
        for call, task in zip(calls, ended, strict=True):
            call.cancel()
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


# Answered, or the caller's own fault. All else may be one server's trouble, even NOT_FOUND: a new
# version is not on every server in the same moment; and who fails at once would always be first.
_SETTLED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
)

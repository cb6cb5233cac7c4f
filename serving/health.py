"""gRPC's health service, in the place of grpc_health's own.

That one writes to a watcher under a lock which whoever changes a status must have: one watcher that
does not read, and needs no token, would hold up every reload and the end of the server.
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

# A client that watches does so once on each connection; one takes 22 KiB here, and needs no token.
MOST_WATCHERS = 4096
# A server that can't answer lets its watchers go after so long.
NOT_SERVING_S = 1.0


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # another one after each change
        self._ended = False
        self._watchers = 0

    def report(self, services: tuple[str, ...], status: int) -> None:
        """From now on, until the end, these services have that status."""
        if not self._ended:
            self._statuses |= dict.fromkeys(services, status)
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """Report NOT_SERVING for all, and nothing else ever after. Whoever watches is not told:
        its connection is about to end, and of a proxy's the other servers go on."""
        self._statuses = dict.fromkeys(self._statuses, pb.HealthCheckResponse.NOT_SERVING)
        self._ended = True

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return pb.HealthCheckResponse(status=status)

    async def List(self, request: pb.HealthListRequest, context: Any) -> pb.HealthListResponse:
        return pb.HealthListResponse(
            statuses={
                service: pb.HealthCheckResponse(status=status)
                for service, status in self._statuses.items()
            }
        )

    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:
        if self._watchers == MOST_WATCHERS:
            # To gRPC's clients a server without Watch is healthy; after any other status they would
            # call it no more.
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{MOST_WATCHERS:,} watch the health of this server already; call Check",
            )
        self._watchers += 1
        try:
            await self._tell(request.service, context)
        finally:
            self._watchers -= 1

    async def _tell(self, service: str, context: Any) -> None:
        """Its status now, and each that follows, until this server can't answer. A client watches
        one of the servers behind a proxy, and takes what it says for all of them: so it is to ask
        again, and comes to another."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(pb.HealthCheckResponse(status=status))
                told = status
            try:
                not_serving = status == pb.HealthCheckResponse.NOT_SERVING
                async with asyncio.timeout(NOT_SERVING_S if not_serving else None):
                    await changed.wait()
            except TimeoutError:
                return

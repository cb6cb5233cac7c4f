"""AdminService: operators load and unload versions of a running server, and see what is refused."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from protos.pawprint.v1 import admin_pb2 as pb
from protos.pawprint.v1 import admin_pb2_grpc
from serving.malformed import Open, Registrar
from serving.model_control import ModelControl
from serving.settings import ServerSettings
from serving.status import Failure, failure_of
from serving.version_state import VersionState

T = TypeVar("T")


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, control: ModelControl) -> None:
        self._control = control

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        load = self._control.load_version(request.model, request.version)
        return pb.LoadModelResponse(versions=await _or_abort(load, context))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Any
    ) -> pb.UnloadModelResponse:
        unload = self._control.unload_version(request.model, request.version)
        return pb.UnloadModelResponse(versions=await _or_abort(unload, context))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        settings: ServerSettings = self._control.settings
        return pb.GetStatusResponse(
            versions=[_status(state) for state in self._control.states()],
            control=settings.control,
            policy=settings.versions,
        )


def _status(state: VersionState) -> pb.VersionStatus:
    return pb.VersionStatus(
        model=state.model,
        version=state.version,
        state=pb.State.Value(f"STATE_{state.state.upper()}"),
        reason=state.reason,
        aliases=state.aliases,
        default=state.default,
        device=state.device,
        precision=state.precision,
    )


async def _or_abort(work: Awaitable[T], context: Any) -> T:
    """What is begun is brought to its end, though the caller leaves: else a load that takes longer
    than its patience would go on in its thread and be thrown away, each time anew."""
    outcome = await asyncio.shield(asyncio.ensure_future(_outcome(work)))
    if isinstance(outcome, Failure):
        await context.abort(outcome.code, outcome.message)
        raise AssertionError("abort raises")
    return outcome


async def _outcome(work: Awaitable[T]) -> T | Failure:
    try:
        return await work
    except Exception as error:
        return failure_of(error)


def admin_server(control: ModelControl, address: str) -> grpc.aio.Server:
    """Not started yet. Raises RuntimeError if the address can't be had."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        AdminService(control), Registrar(server, Open().checked)
    )
    server.add_insecure_port(address)
    return server

"""A message that can't be parsed is a caller's mistake, and answered as one.

gRPC itself would answer UNKNOWN with the name of a Python class, and log a traceback.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

MALFORMED = object()  # stands for such a message
TEXT = "the message can't be parsed: it is not one that this method takes"


class Registrar:
    """Takes the services that belong to `server`, in their generated add_..._to_server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Handlers(handler) for handler in handlers])

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """The generic ones answer; gRPC has no others for asyncio."""


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: grpc.GenericRpcHandler) -> None:
        self._handlers = handlers
        self._methods: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        if method is None:
            method = self._handlers.service(details)
            if method is not None:  # else the caller's word for it, of which there is no end
                method = self._methods[details.method] = _tolerant(method)
        return method


def _tolerant(method: Any) -> Any:
    """A stream of requests meets MALFORMED itself, in Edge."""
    parse = _parser(method.request_deserializer)
    if method.request_streaming:
        return method._replace(request_deserializer=parse)
    answer = method.unary_unary

    async def unary(request: Any, context: Any) -> Any:
        if request is MALFORMED:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, TEXT)
        return await answer(request, context)

    return grpc.unary_unary_rpc_method_handler(unary, parse, method.response_serializer)


def _parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return MALFORMED

    return tolerant

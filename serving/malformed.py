"""Messages are parsed by us and not by gRPC: after the caller is known, and without a traceback.

Of a message that can't be parsed gRPC itself would tell the caller the name of a Python class. It
would also parse whatever comes, before anybody has looked at the caller's token.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from serving.errors import InvalidRequest
from serving.wire_scan import TEXT, check_parts, fields_of

M = TypeVar("M")
Parse = Callable[[bytes], M]  # raises InvalidRequest

# Health, reflection and AdminService ask for no token; their messages hold a name.
OPEN_BYTES = 4096


class Registrar:
    """Takes services that belong to `server`, in their generated add_..._to_server; `adapt` makes
    of each method's handler the one that is registered."""

    def __init__(self, server: grpc.aio.Server, adapt: Callable[[Any], Any]) -> None:
        self._server = server
        self._adapt = adapt

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Handlers(h, self._adapt) for h in handlers])

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """The generic ones answer; gRPC has no others for asyncio."""


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: grpc.GenericRpcHandler, adapt: Callable[[Any], Any]) -> None:
        self._handlers = handlers
        self._adapt = adapt
        self._methods: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        if method is None:
            method = self._handlers.service(details)
            if method is not None:  # else the caller's word for it, of which there is no end
                method = self._methods[details.method] = self._adapt(method)
        return method


def unread(method: Any) -> Any:
    """The servicer gets no message but what parses one: Edge reads it when it has let the call in.

    So a method of one message is a stream to gRPC, which would fetch the message first.
    """
    parse = _parse_of(method)
    serialize = method.response_serializer
    if method.request_streaming:
        serve = method.stream_stream

        async def answer_stream(_: Any, context: Any) -> None:
            await serve(parse, context)

        return grpc.stream_stream_rpc_method_handler(answer_stream, None, serialize)
    serve = method.unary_unary

    async def answer(_: Any, context: Any) -> Any:
        return await serve(parse, context)

    return grpc.stream_unary_rpc_method_handler(answer, None, serialize)


def checked(method: Any) -> Any:
    """For a service that does not go through Edge: a message that is too long or
    can't be parsed ends the call as the caller's mistake."""
    parse = method.request_deserializer

    async def parsed(data: bytes, context: Any) -> Any:
        try:
            if len(data) <= OPEN_BYTES:
                return parse(data)
        except DecodeError:
            pass
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, TEXT)

    if method.request_streaming:
        serve = method.stream_stream

        async def answer_stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            async def messages() -> AsyncIterator[Any]:
                async for data in requests:
                    yield await parsed(data, context)

            async for answer in serve(messages(), context):
                yield answer

        return method._replace(request_deserializer=None, stream_stream=answer_stream)
    kind = "unary_stream" if method.response_streaming else "unary_unary"
    serve_one = getattr(method, kind)

    async def answer(data: bytes, context: Any) -> Any:
        return await serve_one(await parsed(data, context), context)

    return method._replace(request_deserializer=None, **{kind: answer})


def _parse_of(method: Any) -> Parse[Any]:
    deserialize = method.request_deserializer
    fields = fields_of(deserialize.__self__.DESCRIPTOR)  # the message class, whose FromString it is

    def parse(data: bytes) -> Any:
        check_parts(data, fields)
        try:
            return deserialize(data)
        except DecodeError as error:
            raise InvalidRequest(TEXT) from error

    return parse

"""Messages are parsed by us and not by gRPC: after the caller is known, and without a traceback.

Of a message that can't be parsed gRPC itself would tell the caller the name of a Python class. It
would also parse whatever comes, before anybody has looked at the caller's token.
"""

import asyncio
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
# A message that is on its way holds what has come of it.
ARRIVES_S = 60.0
# So many may take that long; who comes while they do has less, enough for a message of that size.
_WAITED_FOR, SOON_S = 4, 1.0


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


class Open:
    """The methods of a server that do not go through Edge and ask for no token: a message that is
    too long or can't be parsed ends the call as the caller's mistake.

    gRPC fetches a message whole, up to the size of those with photos, before it can be refused. So
    of those that do not come at once only a few are waited for. Belongs to the event loop.
    """

    def __init__(self) -> None:
        self._coming = 0

    def checked(self, method: Any) -> Any:
        """As `unread`: else gRPC would wait for the message, for ever."""
        parse, serialize = method.request_deserializer, method.response_serializer
        if method.request_streaming:
            serve = method.stream_stream

            async def answer_stream(_: Any, context: Any) -> AsyncIterator[Any]:
                async def messages() -> AsyncIterator[Any]:
                    while (data := await self._message(context)) is not grpc.aio.EOF:
                        yield await _parsed(data, parse, context)

                async for answer in serve(messages(), context):
                    yield answer

            return grpc.stream_stream_rpc_method_handler(answer_stream, None, serialize)
        serve_one = method.unary_stream if method.response_streaming else method.unary_unary

        async def answer(_: Any, context: Any) -> Any:
            data = await self._message(context)
            if data is grpc.aio.EOF:  # a caller that has gone, too, whom this does not reach
                data = None
            return await serve_one(await _parsed(data, parse, context), context)

        if method.response_streaming:
            return grpc.stream_stream_rpc_method_handler(answer, None, serialize)
        return grpc.stream_unary_rpc_method_handler(answer, None, serialize)

    async def _message(self, context: Any) -> Any:
        within_s = ARRIVES_S if self._coming < _WAITED_FOR else SOON_S
        self._coming += 1
        try:
            async with asyncio.timeout(within_s):
                return await context.read()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the message did not arrive within {within_s:g} s",
            )
        finally:
            self._coming -= 1


async def _parsed(data: bytes | None, parse: Callable[[bytes], Any], context: Any) -> Any:
    try:
        if data is not None and len(data) <= OPEN_BYTES:
            return parse(data)
    except DecodeError:
        pass
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, TEXT)


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

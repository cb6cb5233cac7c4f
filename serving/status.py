"""The one table from exceptions to gRPC's status codes."""

import logging
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from serving.errors import (
    BrokenVersion,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unauthenticated,
    Unavailable,
    sendable,
)

log = logging.getLogger(__name__)

STATUS: dict[type[PawprintError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidImage: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    BrokenVersion: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
}
# Where gRPC carries a google.rpc.Status, whose details a client can read.
DETAILS = "grpc-status-details-bin"
# Trailers of more than 8 KiB may be thrown away on their way, status and all. A message stands in
# them twice, and three bytes for each that is not ASCII.
_LONGEST_BYTES = 1000
_LONGEST_MS = 2**31 - 1  # an int32, 24 days: a rate may be of a few photos a day


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the caller is told."""

    code: grpc.StatusCode
    message: str
    retry_after_ms: int = 0  # 0 where that is not known
    trailers: tuple[tuple[str, bytes], ...] = ()


def failure_of(error: Exception) -> Failure:
    """An unexpected error is logged whole, and leaves as bare INTERNAL."""
    if not isinstance(error, PawprintError):
        log.error("unexpected error while answering a call", exc_info=error)
        return Failure(code=grpc.StatusCode.INTERNAL, message="internal error of the server")
    code, message = STATUS[type(error)], _short(str(error))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        retry_after_ms = round(min(max(1, 1e3 * error.retry_after_s), _LONGEST_MS))
        return Failure(
            code=code,
            message=message,
            retry_after_ms=retry_after_ms,
            trailers=_retry(code, message, retry_after_ms),
        )
    return Failure(code=code, message=message)


def _short(message: str) -> str:
    message = sendable(message)
    data = message.encode()
    if len(data) <= _LONGEST_BYTES:
        return message
    return data[:_LONGEST_BYTES].decode(errors="ignore") + "..."


def _retry(
    code: grpc.StatusCode, message: str, retry_after_ms: int
) -> tuple[tuple[str, bytes], ...]:
    """google.rpc.RetryInfo: when another attempt has a chance."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(retry_after_ms)
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    return ((DETAILS, status.SerializeToString()),)

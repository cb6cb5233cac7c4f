"""The client's edge: photos -> message, message -> values, status codes -> exceptions."""

import errno
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from PIL import Image, ImageOps

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.answers import Label, Model, ModelDescription, Response, Result, Timings
from serving.errors import (
    BrokenVersion,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unauthenticated,
    Unavailable,
    not_utf8,
)
from serving.modelspec import Familiarity, RobustAccuracy, RobustnessSummary, Threshold, Trust
from serving.proxies import by_proxy

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_IN_FLIGHT = 16
# Between attempts at a photo that a server refuses for now, seconds; twice as long each time.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
CLOSED = "the client is closed; make another"
CLOSED_MEANWHILE = "the client was closed before the answer came"

# About 30 years: more than gRPC counts to would come out as a deadline that has passed.
_LONGEST_S = 1e9

Photo = bytes | str | os.PathLike[str] | Image.Image

EXCEPTIONS: dict[grpc.StatusCode, type[PawprintError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: BrokenVersion,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.CANCELLED: Unavailable,  # we cancel no call that we wait for: the server did
}
_NO_PNG = ("CMYK", "YCbCr", "HSV", "RGBX")  # modes of Pillow that a JPEG may have
_MAX_MESSAGE_BYTES = 2**31 - 2**20  # protobuf's own limit, and room for all but the photos
# gRPC's own words
_NO_ANSWER = "Deadline Exceeded"
_CUT_OFF = "Received RST_STREAM"
_TOO_LARGE_TO_PASS = "Received http2 header with status: 413"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def several(photos: Iterable[Photo]) -> Iterable[Photo]:
    """The same. Raises TypeError for a single photo, which could be gone through too: a path by its
    letters, a file by its lines."""
    if hasattr(photos, "read") or isinstance(
        photos, bytes | bytearray | memoryview | str | os.PathLike | Image.Image
    ):
        raise TypeError("photos is a sequence of photos; a single one goes in a list: [photo]")
    return photos


def places_for(in_flight: int) -> int:
    """The same. Raises InvalidRequest: with no place in flight a stream would wait for ever, and
    of 1.5 places a semaphore is never without one."""
    if not isinstance(in_flight, Integral) or in_flight < 1:
        raise InvalidRequest(f"in_flight must be 1 or more photos, got {in_flight}")
    return in_flight


def hedge_s(hedge_after_s: float | None) -> float | None:
    """The same. Raises InvalidRequest for what is no time to wait."""
    if hedge_after_s is not None and not hedge_after_s >= 0:  # nor is NaN
        raise InvalidRequest(f"hedge_after_s must be 0 or more, or None, got {hedge_after_s}")
    return hedge_after_s


def photos_together(max_batch: int, hedge_after_s: float | None) -> int:
    """max_batch. Raises InvalidRequest."""
    if max_batch < 1:
        raise InvalidRequest(f"max_batch must be 1 or more, got {max_batch}")
    if max_batch > 1 and hedge_after_s is not None:
        raise InvalidRequest(
            "max_batch saves work where calls are many, and hedge_after_s does some of it twice "
            "where one is slow: give one of the two"
        )
    return max_batch


def wait_s(timeout_s: float | None, default_s: float) -> float:
    """How long to wait, in seconds: what is left may have become less than none, or be endless."""
    return min(max(0.0, default_s if timeout_s is None else timeout_s), _LONGEST_S)


def encoded(photo: Photo) -> bytes:
    """The bytes to send: a file as it is, a Pillow image, upright, as PNG.

    Raises OSError for a file or an image that can't be read, TypeError for what is no photo.
    """
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        return _png(photo)
    if not isinstance(photo, str | os.PathLike):
        raise TypeError(
            "a photo is a path, the bytes of a file or a Pillow image, got "
            f"{type(photo).__name__} (bytes(...) of other bytes, .read() of an open file, "
            "Image.fromarray(...) of an array)"
        )
    try:
        return file_bytes(Path(photo))
    except ValueError as error:  # a zero byte, say, that no path can have
        raise OSError(f"{os.fspath(photo)!r} is no path: {error}") from error


def file_bytes(path: Path) -> bytes:
    """Raises OSError, also for a file that no message can hold: it may be larger than the memory,
    and is not read."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_MESSAGE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)  # as the server turns a file
        if upright.mode in _NO_PNG:
            upright = upright.convert("RGB")
        upright.save(buffer, "PNG")
    except OSError:
        raise
    # Pillow reads a file only here, and is not of one mind: SyntaxError, ValueError (no pixels) ...
    except Exception as error:
        raise OSError(str(error)) from error
    return buffer.getvalue()


def classify_request(
    photos: Sequence[bytes],
    model: str,
    version: str | int,
    top_k: int,
    low_priority: bool,
    routing_key: str = "",
) -> pb.ClassifyRequest:
    if not 0 <= top_k < 2**31:
        raise InvalidRequest(f"top_k must be 0 to the number of labels, got {top_k}")
    if (size := sum(map(len, photos))) > _MAX_MESSAGE_BYTES:
        raise InvalidRequest(
            f"the photos have {size:,} bytes; no message can hold more than {_MAX_MESSAGE_BYTES:,}"
        )
    if not isinstance(routing_key, str):
        raise TypeError(f"routing_key must be a string, got {routing_key!r}")
    with _text_alone():
        return pb.ClassifyRequest(
            model=model,
            version=str(version),
            images=photos,
            top_k=top_k,
            priority=pb.PRIORITY_LOW if low_priority else pb.PRIORITY_UNSPECIFIED,
            routing_key=routing_key,
        )


def model_request(model: str, version: str | int) -> pb.GetModelRequest:
    """Raises InvalidRequest."""
    with _text_alone():
        return pb.GetModelRequest(model=model, version=str(version))


@contextmanager
def _text_alone() -> Iterator[None]:
    """A name may come from a caller of the caller, and hold half a character."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest(not_utf8(repr(error.object))) from error


def exception_of_call(error: Any, address: str) -> PawprintError:
    """The exception for a failed call's grpc.RpcError."""
    return exception_of(error.code(), error.details(), address, retry_after_s(error))


def retry_after_s(error: Any) -> float | None:
    """What a server says of when to try again: google.rpc.RetryInfo in its trailing metadata."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.RetryInfo()
            try:
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Unpack(info):
                        return float(info.retry_delay.ToMilliseconds()) / 1e3
            except DecodeError:
                return None  # of another kind of server
    return None


def exception_of(
    code: Any, details: str | None, address: str, retry_after_s: float | None = None
) -> PawprintError:
    """The exception for a status; `code` is a grpc.StatusCode or its number."""
    code = _CODES.get(code, code)
    details = details or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return InvalidRequest(f"the message is larger than the server takes ({details})")
    if code is grpc.StatusCode.UNKNOWN and details == _TOO_LARGE_TO_PASS:
        return InvalidRequest(
            f"a proxy before the server at {address} takes no more bytes in one call (HTTP 413): "
            "raise its limit (nginx: client_max_body_size 0), or send fewer or smaller photos"
        )
    if code is grpc.StatusCode.INTERNAL and _CUT_OFF in details:
        code = grpc.StatusCode.UNAVAILABLE  # by a proxy that has lost the server
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:  # which the server says too, if it is first
        return no_answer(address, "" if details == _NO_ANSWER else f": {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"the server at {address} does not answer{by_proxy(address)}: {details}"
    kind = EXCEPTIONS.get(code)
    if kind is None:
        return PawprintError(f"the server answers {getattr(code, 'name', code)}: {details}")
    if kind is Overloaded:
        return Overloaded(details, retry_after_s=retry_after_s)
    return kind(details)


def no_answer(address: str, why: str = "") -> DeadlineExceeded:
    through = by_proxy(address)
    return DeadlineExceeded(
        f"the server at {address} gave no answer in the time allowed{through}{why}"
    )


def response_of(message: pb.ClassifyResponse) -> Response:
    timings = message.timings
    return Response(
        results=tuple(_result(result) for result in message.results),
        model=message.model,
        version=message.version,
        timings=Timings(
            decode_ms=timings.decode_ms,
            queue_ms=timings.queue_ms,
            inference_ms=timings.inference_ms,
            total_ms=timings.total_ms,
        ),
    )


def _result(message: pb.ImageResult) -> Result:
    if message.WhichOneof("outcome") == "error":
        return Result(labels=(), error=message.error.message)
    found = message.classification
    return Result(
        labels=tuple(
            Label(name=label.name, index=label.index, probability=label.probability)
            for label in found.labels
        ),
        error=None,
        familiarity=found.familiarity if found.HasField("familiarity") else None,
        unfamiliar=found.unfamiliar,
    )


def models_of(message: pb.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(
        Model(
            name=model.name,
            versions=tuple(model.versions),
            default_version=model.default_version,
            aliases=dict(model.aliases),
        )
        for model in message.models
    )


def description_of(message: pb.GetModelResponse) -> ModelDescription:
    return ModelDescription(
        model=message.model,
        version=message.version,
        labels=tuple(message.labels),
        input_size=message.input_size,
        backbone=message.backbone,
        created=message.created,
        precision=message.precision,
        accuracy=message.metrics.accuracy,
        accuracy_low=message.metrics.accuracy_low,
        accuracy_high=message.metrics.accuracy_high,
        expected_calibration_error=message.metrics.expected_calibration_error,
        photos=message.metrics.photos,
        digests=dict(message.digests),
        robustness=_robustness(message.robustness) if message.HasField("robustness") else None,
        trust=_trust(message.trust, message.precision) if message.HasField("trust") else None,
        familiarity=_familiarity(message.familiarity, message.precision)
        if message.HasField("familiarity")
        else None,
    )


def _trust(message: pb.Trust, precision: str) -> Trust:
    return Trust(
        photos=message.photos,
        confidence=message.confidence,
        thresholds=tuple(
            Threshold(
                precision=precision,
                accuracy=t.accuracy,
                probability=t.probability,
                answered=t.answered,
            )
            for t in message.thresholds
        ),
    )


def _robustness(message: pb.RobustnessSummary) -> RobustnessSummary:
    return RobustnessSummary(
        photos=message.photos,
        clean_accuracy=message.clean_accuracy,
        robust_accuracy=tuple(
            RobustAccuracy(norm=r.norm, epsilon=r.epsilon, accuracy=r.accuracy)
            for r in message.robust_accuracy
        ),
        corruption_accuracy=message.corruption_accuracy,
        created=message.created,
    )


def _familiarity(message: pb.Familiarity, precision: str) -> Familiarity:
    measured = message.HasField("unfamiliar")
    return Familiarity(
        photos=message.photos,
        threshold=message.threshold,
        unfamiliar={precision: message.unfamiliar} if measured else {},
    )

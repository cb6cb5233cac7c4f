"""Pixels that come typed are taken out of a message before protobuf parses it.

As uint_contents each pixel is a number of its own, of one byte or two. Protobuf makes four bytes of
each, twice over while it does: 60 MB held up the event loop for a second, and took 500. Here they
stay as they came until the shape is known to be right.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.inference import grpc_service_pb2 as pb
from serving.errors import InvalidRequest
from serving.malformed import Parse
from serving.wire_format import LENGTH, fields, length_delimited
from serving.wire_scan import SMALL_BYTES, TEXT

OVER_255 = "an input of the type UINT8 has an element over 255"
_MESSAGE, _TENSOR = pb.ModelInferRequest, pb.ModelInferRequest.InferInputTensor
# Where they lie: the numbers of the fields, one within the other.
_WAY = (
    _MESSAGE.INPUTS_FIELD_NUMBER,
    _TENSOR.CONTENTS_FIELD_NUMBER,
    pb.InferTensorContents.UINT_CONTENTS_FIELD_NUMBER,
)
_FIELDS = 1000  # more are not looked through: a call with typed pixels has a few


@dataclass(frozen=True, slots=True)
class InferRequest:
    message: pb.ModelInferRequest
    pixels: "Pixels | None" = None  # of its only input, whose contents are left empty


class Pixels:
    """Packed varints, of which nothing is known yet."""

    def __init__(self, packed: memoryview) -> None:
        self._packed = np.frombuffer(packed, np.uint8)

    def __len__(self) -> int:
        """How many there are: each ends with a byte below 128."""
        return int(np.count_nonzero(self._packed < 0x80))

    def array(self) -> npt.NDArray[np.uint8]:
        """uint8 [n]; without a copy where all are below 128. Raises InvalidRequest."""
        more = self._packed >= 0x80  # the pixel goes on
        if not more.any():
            return self._packed
        if more[-1]:
            raise InvalidRequest(TEXT)
        second, more = self._packed[1:], more[:-1]
        if (more & (second > 1)).any():  # so has one that goes on behind its second byte
            raise InvalidRequest(OVER_255)
        values: npt.NDArray[np.uint8] = self._packed & np.uint8(0x7F)
        values[:-1] |= (second << 7) * more
        begins = np.ones(len(values), bool)
        np.logical_not(more, out=begins[1:])
        return np.compress(begins, values)  # three times as fast as values[begins]


def with_typed_pixels(parse: Parse[pb.ModelInferRequest]) -> Parse[InferRequest]:
    """What parses such a message whose pixels may be typed."""

    def parse_rest(data: bytes) -> InferRequest:
        if len(data) <= SMALL_BYTES:
            return InferRequest(parse(data))
        try:
            cut = _cut(memoryview(data), *_WAY)
        except (IndexError, ValueError):  # which parsing finds, too
            cut = None
        if cut is None:
            return InferRequest(parse(data))
        rest, packed = cut
        return InferRequest(parse(rest), Pixels(packed))

    return parse_rest


def _cut(message: memoryview, number: int, *within: int) -> tuple[bytes, memoryview] | None:
    """A message without the field that lies within these, one in the other, and what it holds. None
    where it is not there, or one of them several times: no encoder makes that of pixels."""
    found: tuple[int, memoryview, int] | None = None
    start = 0
    for count, (one, content, end) in enumerate(fields(message)):
        if count == _FIELDS:
            return None
        if one == number:
            if found or not isinstance(content, memoryview) or message[start] & 7 != LENGTH:
                return None
            found = start, content, end
        start = end
    if found is None:
        return None
    start, content, end = found
    rest = b""
    if within:
        cut = _cut(content, *within)
        if cut is None:
            return None
        rest = length_delimited(number, cut[0])
        content = cut[1]
    return b"".join((message[:start], rest, message[end:])), content

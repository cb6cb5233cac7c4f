"""Typed pixels, cut out of the bytes of a message: protobuf's own encoder is the oracle."""

from collections.abc import Callable

import grpc
import numpy as np
import pytest

from protos.inference import grpc_service_pb2 as pb
from serving.errors import InvalidRequest
from serving.typed_pixels import Pixels, with_typed_pixels
from serving.wire_format import length_delimited
from serving.wire_scan import check_parts, fields_of
from tests.conftest import Running, ServerProcess
from tests.faults.process import MIB, forget_peak, peak_mib, resident_mib

INFER = "/inference.GRPCInferenceService/ModelInfer"
LARGE = [("grpc.max_send_message_length", -1)]
FIELDS = fields_of(pb.ModelInferRequest.DESCRIPTOR)


def parsed(data: bytes) -> pb.ModelInferRequest:
    check_parts(data, FIELDS)
    return pb.ModelInferRequest.FromString(data)


received = with_typed_pixels(parsed)


def typed(pixels: np.ndarray) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets", id="7")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    tensor.contents.uint_contents.extend(pixels.ravel().tolist())
    tensor.parameters["x"].int64_param = 3
    request.outputs.add(name="logits")
    request.parameters["routing_key"].string_param = "key"
    return request


@pytest.mark.parametrize(("low", "high"), [(0, 256), (0, 128), (128, 256), (0, 1), (255, 256)])
def test_the_pixels_and_the_rest_are_what_was_sent(low: int, high: int) -> None:
    pixels = np.random.default_rng(0).integers(low, high, 100_000, np.uint8)
    request = typed(pixels)
    got = received(request.SerializeToString())
    assert got.pixels is not None and len(got.pixels) == len(pixels)
    array = got.pixels.array()
    assert array.dtype == np.uint8 and np.array_equal(array, pixels)
    request.inputs[0].contents.ClearField("uint_contents")
    assert got.message == request and got.message.inputs[0].HasField("contents")


@pytest.mark.parametrize(
    "unknown",
    [b"\xf8\x01\x96\x01", b"\xf9\x01" + bytes(8), b"\xfa\x01\x02hi", b"\xfd\x01" + bytes(4)],
    ids=["varint", "fixed64", "length", "fixed32"],
)
def test_the_fields_of_a_newer_protocol_are_passed_over(unknown: bytes) -> None:
    """Number 31, of each wire type that there is."""
    request = typed(np.ones(100_000, np.uint8))
    got = received(unknown + request.SerializeToString() + unknown)
    assert got.pixels is not None and len(got.pixels) == 100_000
    request.inputs[0].contents.ClearField("uint_contents")
    assert got.message.SerializeToString() == request.SerializeToString() + unknown * 2
    request.raw_input_contents.append(bytes(100_000))  # large enough for its parts to be counted
    check_parts(unknown + request.SerializeToString() + unknown, FIELDS)


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"\x80\x02", "over 255"),
        (b"\x01\xff\x02\x01", "over 255"),
        (b"\xff\xff\xff\xff\x0f", "over 255"),
        (b"\x01\x80", "can't be parsed"),
    ],
)
def test_what_is_no_pixel(packed: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Pixels(memoryview(packed)).array()


@pytest.mark.parametrize("length", [1, 127, 128, 129, 16_383, 16_384, 2**21])
def test_a_field_is_written_as_protobuf_writes_it(length: int) -> None:
    expected = pb.ModelInferRequest(model_name="x" * length).SerializeToString()
    assert length_delimited(1, b"x" * length) == expected


PACKED = length_delimited(4, b"\x01" * 100_000)
CONTENTS = length_delimited(5, PACKED)
SMALL = length_delimited(5, length_delimited(4, b"\x07"))
NO_INPUT = b"\x28\x01"  # by its number one, but not by its wire type


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (length_delimited(5, CONTENTS) * 2, "fields and elements"),  # two inputs
        (length_delimited(5, CONTENTS * 2), "fields and elements"),
        (length_delimited(5, length_delimited(5, PACKED * 2)), "fields and elements"),
        (length_delimited(5, length_delimited(5, b"\x20\x01" * 100_000)), "fields and elements"),
        (length_delimited(5, SMALL + CONTENTS), "fields and elements"),  # which are one, merged
        (length_delimited(5, CONTENTS) + NO_INPUT, "fields and elements"),
        (length_delimited(5, CONTENTS)[:-1], "can't be parsed"),
        (length_delimited(5, CONTENTS) + b"\x0b", "can't be parsed"),
    ],
)
def test_what_no_encoder_makes_of_pixels_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        received(message)


async def test_many_typed_pixels_are_answered_as_raw_ones(running: Running) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    raw = pb.ModelInferRequest(model_name="pets")
    raw.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    raw.raw_input_contents.append(pixels.tobytes())
    async with grpc.aio.insecure_channel(running.address) as channel:
        infer = channel.unary_unary(INFER, None, pb.ModelInferResponse.FromString)
        as_raw = await infer(raw.SerializeToString())
        as_typed = await infer(typed(pixels).SerializeToString())
        both = typed(pixels)
        both.raw_input_contents.append(pixels.tobytes())
        with pytest.raises(grpc.aio.AioRpcError, match="not both"):
            await infer(both.SerializeToString())
    assert as_typed.id == "7" and not as_typed.raw_output_contents
    values = np.array(as_typed.outputs[0].contents.fp32_contents, np.float32)
    assert np.array_equal(values, np.frombuffer(as_raw.raw_output_contents[1], np.float32))


@pytest.mark.parametrize("field", ["uint_contents", "int_contents", "bool_contents"])
def test_numbers_take_no_more_memory_than_their_message(
    models, start: Callable[..., ServerProcess], field: str
) -> None:
    """Parsed, 30 MiB of them were 250."""
    number = pb.InferTensorContents.DESCRIPTOR.fields_by_name[field].number
    message = pb.ModelInferRequest(model_name="pets")
    message.inputs.add(name="image", datatype="UINT8", shape=[64, 32, 32, 3])
    contents = length_delimited(5, length_delimited(number, b"\x01" * (30 * MIB)))
    data = length_delimited(1, b"pets") + length_delimited(
        5, message.inputs[0].SerializeToString() + contents
    )
    server = start(models)
    pid = server.process.pid
    with grpc.insecure_channel(server.address, LARGE) as channel:
        infer = channel.unary_unary(INFER)
        for sent in (b"", data):
            before = resident_mib(pid)
            forget_peak(pid)
            with pytest.raises(grpc.RpcError):
                infer(sent)
    assert peak_mib(pid) - before < 30 * 3.5

"""The Open Inference Protocol, message by message: typed and raw, and every wrong request."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos.inference import grpc_service_pb2 as pb
from protos.inference import grpc_service_pb2_grpc
from serving.inference_messages import priority_of
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from serving.repository import Repository
from serving.turns import Priority
from tests.conftest import Running, running_server
from tests.photos import jpeg
from tests.serving.held_model import HeldModel, until
from tests.tiny import build_version, familiarity_of, logits_of, softmax

Code = grpc.StatusCode
Stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub
Parameter = pb.InferParameter
PHOTOS = [jpeg(seed=seed) for seed in range(3)]
PIXELS = np.stack(
    [preprocess(photo, Preprocessing(size=32, interpolation="bilinear")) for photo in PHOTOS]
)


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield Stub(channel)


def raw_photos() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets")
    request.inputs.add(name="image", datatype="BYTES", shape=[3])
    request.raw_input_contents.append(
        b"".join(struct.pack("<I", len(photo)) + photo for photo in PHOTOS)
    )
    return request


def typed_photos() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[3])
    tensor.contents.bytes_contents.extend(PHOTOS)
    return request


def raw_pixels() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets")
    request.inputs.add(name="image", datatype="UINT8", shape=PIXELS.shape)
    request.raw_input_contents.append(PIXELS.tobytes())
    return request


def typed_pixels() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=PIXELS.shape)
    tensor.contents.uint_contents.extend(PIXELS.ravel().tolist())
    return request


@pytest.mark.parametrize("make", [raw_photos, typed_photos, raw_pixels, typed_pixels])
async def test_every_way_to_send_photos_gives_the_same_answer(
    stub: Stub, make: Callable[[], pb.ModelInferRequest]
) -> None:
    request = make()
    response = await stub.ModelInfer(request)
    assert (response.model_name, response.model_version) == ("pets", "1")
    raw = bool(request.raw_input_contents)
    assert [tensor.name for tensor in response.outputs] == ["probabilities", "logits"]
    assert len(response.raw_output_contents) == (2 if raw else 0)
    logits = logits_of(PIXELS)
    for index, expected in enumerate((softmax(logits), logits)):
        tensor = response.outputs[index]
        assert (tensor.datatype, list(tensor.shape)) == ("FP32", [3, 2])
        assert tensor.HasField("contents") != raw
        values = (
            np.frombuffer(response.raw_output_contents[index], "<f4")
            if raw
            else np.array(tensor.contents.fp32_contents)
        )
        assert np.allclose(values.reshape(3, 2), expected, atol=1e-4)


async def test_outputs_come_in_the_order_asked_for(stub: Stub) -> None:
    request = typed_photos()
    request.outputs.add(name="logits")
    classes = request.outputs.add(name="probabilities")
    classes.parameters["classification"].int64_param = 9  # more than there are: all
    response = await stub.ModelInfer(request)
    logits, best = response.outputs
    assert (logits.name, best.name, best.datatype) == ("logits", "probabilities", "BYTES")
    assert list(best.shape) == [3, 2]
    for index, row in enumerate(softmax(logits_of(PIXELS))):
        value, place, label = best.contents.bytes_contents[2 * index].decode().split(":")
        assert float(value) == pytest.approx(row.max(), abs=1e-4)
        assert (int(place), label) == (row.argmax(), ("cat", "dog")[row.argmax()])


def change(make: Callable[[], pb.ModelInferRequest], **fields: object) -> pb.ModelInferRequest:
    """The request with fields of its first input changed."""
    request = make()
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def altered(
    make: Callable[[], pb.ModelInferRequest], alter: Callable[[pb.ModelInferRequest], object]
) -> pb.ModelInferRequest:
    request = make()
    alter(request)
    return request


WRONG = [
    (pb.ModelInferRequest(model_name="pets"), "one input, 'image'; it has []"),
    (altered(raw_photos, lambda r: r.inputs.add(name="mask")), "it has ['image', 'mask']"),
    (change(raw_photos, name="picture"), "it has ['picture']"),
    (change(raw_photos, datatype="FP32"), "must be BYTES (encoded photos) or UINT8"),
    (change(raw_photos, shape=[4]), "has 3 elements; its shape is [4]"),
    (change(raw_photos, shape=[3, 2]), "must have the shape [n] or [n, 1]; got [3, 2]"),
    (change(raw_photos, shape=[2]), "has more than 2 elements; its shape is [2]"),
    (change(raw_photos, shape=[-1]), "must have the shape [n] or [n, 1]"),
    (change(raw_photos, shape=[1] * 16_000), "got [1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    (change(raw_pixels, shape=range(16_000)), "got [0, 1, 2, 3, 4, 5, 6, 7, ...]"),
    (change(raw_pixels, shape=[3, 32, 32, 4]), "must have the shape [n, 32, 32, 3]"),
    (change(raw_pixels, shape=[2**62, 32, 32, 3]), "photos; at most 64 are allowed"),
    (change(raw_pixels, shape=[4, 32, 32, 3]), "9,216 bytes; its shape [4, 32, 32, 3] needs 12,"),
    (change(typed_pixels, shape=[2, 32, 32, 3]), "has 9,216 bytes; its shape"),
    (
        altered(typed_pixels, lambda r: r.inputs[0].contents.uint_contents.__setitem__(0, 256)),
        "has an element over 255",
    ),
    (
        altered(raw_photos, lambda r: r.raw_input_contents.append(b"")),
        "must have one element for each input",
    ),
    (
        altered(raw_photos, lambda r: r.inputs[0].contents.bytes_contents.append(b"x")),
        "not both",
    ),
    (
        altered(raw_photos, lambda r: r.raw_input_contents.__setitem__(0, b"\xff\xff\xff\xffxx")),
        "ends within an element",
    ),
    (
        altered(raw_photos, lambda r: r.raw_input_contents.__setitem__(0, b"\x01")),
        "ends within an element",
    ),
    (
        altered(raw_photos, lambda r: r.raw_input_contents.__setitem__(0, b"\x05\0\0\0")),
        "input 'image' ends within an element",
    ),
    (change(typed_photos, shape=[0]), "the call holds no photos"),
    (altered(raw_photos, lambda r: r.outputs.add(name="scores")), "there is no output 'scores'"),
    (
        altered(raw_photos, lambda r: [r.outputs.add(name="logits") for _ in "ab"]),
        "an output is asked for twice",
    ),
    (
        altered(
            raw_photos,
            lambda r: r.outputs.add(
                name="logits", parameters={"classification": Parameter(string_param="2")}
            ),
        ),
        "'classification' must be an integer",
    ),
    (
        altered(
            raw_photos,
            lambda r: (
                r.inputs[0]
                .parameters["shared_memory_region"]
                .MergeFrom(Parameter(string_param="region"))
            ),
        ),
        "shared memory is not served",
    ),
    (
        altered(raw_photos, lambda r: r.parameters["timeout"].MergeFrom(Parameter(int64_param=-1))),
        "'timeout' must be an integer",
    ),
    (
        altered(raw_photos, lambda r: r.parameters["priority"].MergeFrom(Parameter(bool_param=1))),
        "'priority' must be an integer",
    ),
    (
        altered(
            raw_photos, lambda r: r.parameters["routing_key"].MergeFrom(Parameter(int64_param=1))
        ),
        "'routing_key' must be a string",
    ),
]


@pytest.mark.parametrize(("request_", "words"), WRONG, ids=[words for _, words in WRONG])
async def test_a_wrong_request_is_told_what_is_wrong(
    stub: Stub, request_: pb.ModelInferRequest, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ModelInfer(request_)
    assert raised.value.code() is Code.INVALID_ARGUMENT
    assert words in raised.value.details()


async def test_a_model_is_described_as_triton_describes_one(models) -> None:
    async with (
        running_server(models, max_photos=8, max_delay_ms=3) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        metadata = await Stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="pets"))
        config = (await Stub(channel).ModelConfig(pb.ModelConfigRequest(name="pets"))).config
    tensor, outputs = pb.ModelMetadataResponse.TensorMetadata, ("probabilities", "logits")
    assert metadata == pb.ModelMetadataResponse(
        **{"name": "pets", "versions": ["1"], "platform": "onnxruntime_onnx"},
        inputs=[tensor(name="image", datatype="UINT8", shape=[-1, 32, 32, 3])],
        outputs=[tensor(name=name, datatype="FP32", shape=[-1, 2]) for name in outputs],
    )
    assert config == pb.ModelConfig(
        **{"name": "pets", "platform": "onnxruntime_onnx", "backend": "onnxruntime"},
        max_batch_size=8,
        input=[pb.ModelInput(name="image", data_type=pb.TYPE_UINT8, dims=[32, 32, 3])],
        output=[pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[2]) for name in outputs],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=3000),
    )


async def test_the_third_output_of_a_version_that_has_one(tmp_path: Path) -> None:
    for familiar in (False, True):
        build_version(tmp_path, "pets", familiar=familiar)
    Repository(tmp_path).promote("pets", 1, "old")
    names = ["probabilities", "logits", "familiarity"]
    async with (
        running_server(tmp_path) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = Stub(channel)
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="pets"))
        assert {o.name: list(o.shape) for o in metadata.outputs} == {
            **dict.fromkeys(names, [-1, 2]), "familiarity": [-1, 1],
        }  # fmt: skip
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="pets"))).config
        assert [(o.name, list(o.dims)) for o in config.output][2] == ("familiarity", [1])
        response = await stub.ModelInfer(raw_pixels())
        assert [(o.name, list(o.shape)) for o in response.outputs] == [
            *((name, [3, 2]) for name in names[:2]), ("familiarity", [3, 1]),
        ]  # fmt: skip
        expected = familiarity_of(PIXELS)
        assert np.allclose(np.frombuffer(response.raw_output_contents[2], "<f4"), expected[:, 0])

        request = typed_pixels()
        asked = request.outputs.add(name="familiarity")
        (output,) = (await stub.ModelInfer(request)).outputs
        assert list(output.contents.fp32_contents) == pytest.approx(expected[:, 0])
        asked.parameters["classification"].int64_param = 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ModelInfer(request)
        assert raised.value.code() is Code.INVALID_ARGUMENT
        assert "'familiarity' is one number and has no labels" in raised.value.details()
        request.model_version = "old"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ModelInfer(request)
        assert raised.value.code() is Code.INVALID_ARGUMENT
        told = "there is no output 'familiarity'; outputs: probabilities, logits"
        assert raised.value.details().endswith(told)


async def test_no_photos_and_too_many(models) -> None:
    async with (
        running_server(models, max_photos=2) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        none = pb.ModelInferRequest(model_name="pets")
        none.inputs.add(name="image", datatype="BYTES", shape=[0])
        for request, words in ((none, "no photos"), (raw_pixels(), "at most 2 are allowed")):
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await Stub(channel).ModelInfer(request)


async def test_unknown_models_and_versions_are_not_found(stub: Stub) -> None:
    for model, version in (("cars", ""), ("pets", "9"), ("pets", "nope")):
        request = raw_photos()
        request.model_name, request.model_version = model, version
        for call in (
            stub.ModelInfer(request),
            stub.ModelMetadata(pb.ModelMetadataRequest(name=model, version=version)),
            stub.ModelConfig(pb.ModelConfigRequest(name=model, version=version)),
            stub.ModelStatistics(pb.ModelStatisticsRequest(name=model, version=version)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is Code.NOT_FOUND
        ready = await stub.ModelReady(pb.ModelReadyRequest(name=model, version=version))
        assert not ready.ready


async def test_it_shares_batches_with_classify_and_harms_no_neighbour(
    running: Running, stub: Stub
) -> None:
    """A bad photo fails its own call; the others of the same batch are answered."""
    held = HeldModel(running.server)
    first = asyncio.ensure_future(stub.ModelInfer(raw_pixels()))
    await held.running(1)
    bad = typed_photos()
    bad.inputs[0].contents.bytes_contents[2] = b"junk"
    spoilt = asyncio.ensure_future(stub.ModelInfer(bad))
    whole = asyncio.ensure_future(stub.ModelInfer(raw_photos()))
    await held.waiting(3 - held.batches[0] + 2 + 3)
    held.release()
    await first
    with pytest.raises(grpc.aio.AioRpcError, match="photo 2 of 3, from 0: not an image"):
        await spoilt
    logits = np.frombuffer((await whole).raw_output_contents[1], "<f4").reshape(3, 2)
    assert np.allclose(logits, logits_of(PIXELS), atol=1e-4)
    assert max(held.batches) > 3


async def test_a_call_of_low_priority_lets_others_go_first(running: Running, stub: Stub) -> None:
    held = HeldModel(running.server)
    first = asyncio.ensure_future(stub.ModelInfer(raw_pixels()))
    await held.running(1)
    await held.waiting(3 - held.batches[0])
    low = raw_pixels()
    low.parameters["priority"].uint64_param = 2
    ended: list[str] = []
    calls = []
    for name, request in (("low", low), ("high", raw_pixels())):
        for _ in range(6):  # 18 photos of each, in batches of 16
            calls.append(asyncio.ensure_future(stub.ModelInfer(request)))
            calls[-1].add_done_callback(lambda _, name=name: ended.append(name))
        await held.waiting(3 - held.batches[0] + 18 * (1 + (name == "high")))
    held.release()
    await asyncio.gather(first, *calls)
    assert ended.index("low") > ended.index("high")
    assert ended.count("high") == ended.count("low") == 6


def test_only_what_comes_behind_the_first_priority_is_low() -> None:
    request = raw_pixels()
    assert priority_of(request) is Priority.HIGH
    for number, priority in ((0, Priority.HIGH), (1, Priority.HIGH), (2, Priority.LOW)):
        request.parameters["priority"].uint64_param = number
        assert priority_of(request) is priority


async def test_in_a_stream_each_request_waits_as_its_priority_is(models) -> None:
    async with (
        running_server(models, max_calls=8) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        calls, held = running.server._edge._calls, HeldModel(running.server)
        stream, low = Stub(channel).ModelStreamInfer(), raw_pixels()
        low.parameters["priority"].string_param = "low"
        await stream.write(low)
        assert "priority" in (await stream.read()).error_message
        low.parameters["priority"].uint64_param = 2
        for _ in range(3):
            await stream.write(low)
        await until(lambda: (calls.total(), calls._low, len(calls._line)) == (2, 2, 1))
        held.release()
        assert [(await stream.read()).error_message for _ in range(3)] == [""] * 3
        stream.cancel()


async def test_requests_of_a_stream_wait_for_room_in_the_queue(models) -> None:
    async with (
        running_server(models, max_queue=16, max_photos=8) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        held = HeldModel(running.server)
        stream = Stub(channel).ModelStreamInfer()
        for _ in range(10):
            await stream.write(raw_pixels())
        await until(lambda: running.server._edge.active == 10)
        await held.admitted(9)  # half of the queue, and the last request whole
        held.release()
        assert [(await stream.read()).error_message for _ in range(10)] == [""] * 10
        stream.cancel()


async def test_calls_of_one_routing_key_have_one_version(models) -> None:
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, versions="all", canary="pets=1:0.5") as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        answered: dict[str, set[str]] = {}
        for key in [f"key-{number}" for number in range(12)] * 2:
            request = raw_pixels()
            request.parameters["routing_key"].string_param = key
            response = await Stub(channel).ModelInfer(request)
            answered.setdefault(key, set()).add(response.model_version)
    assert all(len(versions) == 1 for versions in answered.values())
    assert set.union(*answered.values()) == {"1", "2"}


async def test_statistics_count_what_was_answered(stub: Stub) -> None:
    begun = time.time()
    spoilt = typed_photos()
    spoilt.inputs[0].contents.bytes_contents[2] = b"junk"
    for request in (raw_pixels(), typed_photos()):
        await stub.ModelInfer(request)
    with pytest.raises(grpc.aio.AioRpcError, match="not an image"):
        await stub.ModelInfer(spoilt)
    for asked in ({}, {"name": "pets"}, {"name": "pets", "version": "1"}):
        (pets,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(**asked))).model_stats
        assert (pets.name, pets.version, pets.inference_count) == ("pets", "1", 2 * 3)
        assert 2 <= pets.execution_count <= 3 * 3
        assert 1e3 * begun - 1 <= pets.last_inference <= 1e3 * time.time() + 1
        parts = pets.inference_stats
        assert (parts.success.count, parts.fail.count) == (2, 1)
        for part in (parts.queue, parts.compute_input, parts.compute_infer, parts.compute_output):
            assert part.count == 2
        assert parts.compute_input.ns > 0 and parts.queue.ns > 0 and parts.fail.ns > 0
        assert 0 < parts.compute_infer.ns < parts.success.ns < 1e9 * (time.time() - begun)


async def test_a_loading_server_is_live_and_not_ready(models) -> None:
    from serving.server import Server
    from serving.settings import ServerSettings

    server = Server(ServerSettings(models=str(models), port=0, device="cpu"))
    port = await server.open()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = Stub(channel)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="pets"))).ready
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ModelInfer(raw_photos())
            assert raised.value.code() is Code.UNAVAILABLE
            await server.load()
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="pets"))).ready
    finally:
        await server.close()

"""Errors tell callers what to do, and nothing of the machine: no path, address, host or version."""

import importlib.metadata
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from tests.conftest import Running, running_server
from tests.photos import drawing, encode
from tests.serving.held_model import HeldModel
from tests.serving.test_preprocess import bomb

MUTATIONS = 400
CALLERS_MISTAKES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
)
DETAILS = re.compile(
    r"0x[0-9a-f]{4,}"  # where an object lies
    r"|/(usr|home|root|work|tmp|var|etc|opt|app|models)\b"
    r"|\.py\b|\.so\b|Traceback|File \""
    r"|<[\w.]+ object|<class|\b(PIL|numpy|onnxruntime|Pillow|libjpeg|libpng)\b",
    re.IGNORECASE,
)


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address) as opened:
        yield opened


def mutated() -> list[bytes]:
    """Photos of every format, cut, overwritten or spliced."""
    generator = np.random.default_rng(4)
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO")
    sound = [encode(drawing(48, 32, seed), kind) for seed, kind in enumerate(kinds)]
    photos = [b"", b"junk", bomb(30_000, 30_000)]
    while len(photos) < MUTATIONS:
        data = bytearray(sound[generator.integers(len(sound))])
        for _ in range(generator.integers(1, 12)):
            data[generator.integers(len(data))] = generator.integers(256)
        if generator.random() < 0.5:
            del data[generator.integers(len(data)) :]
        photos.append(bytes(data))
    return photos


def check(message: str, models: Path) -> None:
    assert not DETAILS.search(message), message
    assert str(models) not in message and socket.gethostname() not in message
    for package in ("pillow", "onnxruntime-gpu", "grpcio", "numpy"):
        assert importlib.metadata.version(package) not in message


async def test_no_photo_draws_a_detail_out_of_the_server(
    channel: grpc.aio.Channel, models: Path
) -> None:
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    photos, errors = mutated(), 0
    for start in range(0, len(photos), 50):
        request = pb.ClassifyRequest(model="pets", images=photos[start : start + 50])
        for result in (await stub.Classify(request)).results:
            if result.WhichOneof("outcome") == "error":
                errors += 1
                check(result.error.message, models)
    assert errors > MUTATIONS / 4


async def test_no_wrong_call_does_either(
    running: Running, channel: grpc.aio.Channel, models: Path
) -> None:
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    inference = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    photo = encode(drawing(), "PNG")
    bad = [
        stub.Classify(pb.ClassifyRequest(model=name, images=[photo], version=version, top_k=top_k))
        for name, version, top_k in (
            ("../../x", "", 1),
            ("pets", "../1", 1),
            ("pets", "\x00", 1),
            ("pets", "", -1),
            ("pets", "", 99),
        )
    ]
    bad.append(stub.Classify(pb.ClassifyRequest(model="pets")))
    bad.append(stub.GetModel(pb.GetModelRequest(model="..")))
    bad.append(inference.ModelInfer(grpc_service_pb2.ModelInferRequest(model_name="pets")))
    bad.append(inference.ModelConfig(grpc_service_pb2.ModelConfigRequest(name="/")))
    bad.append(channel.unary_unary("/no.Service/Method")(b""))
    bad.append(channel.unary_unary("/pawprint.v1.ClassifierService/Classify")(b"\xff\xff"))
    for call in bad:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        check(raised.value.details(), models)
        assert raised.value.code() in CALLERS_MISTAKES


async def test_a_message_that_is_none_ends_its_stream_as_a_callers_mistake(
    channel: grpc.aio.Channel,
) -> None:
    stream = channel.stream_stream("/pawprint.v1.ClassifierService/ClassifyStream")()
    good = pb.ClassifyStreamRequest(
        request_id=1, request=pb.ClassifyRequest(model="pets", images=[encode(drawing(), "PNG")])
    )
    await stream.write(good.SerializeToString())
    answer = pb.ClassifyStreamResponse.FromString(await stream.read())
    assert answer.request_id == 1 and answer.HasField("response")
    await stream.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError, match="can't be parsed") as raised:
        await stream.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_and_reflection_refuse_what_is_no_message_too(
    channel: grpc.aio.Channel, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health, reflection = "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/"
    too_long = health_pb2.HealthCheckRequest(service="x" * 5000).SerializeToString()
    for message in (b"\xff\xff", too_long):
        calls = [
            channel.unary_unary(f"{health}Check")(message),
            channel.unary_stream(f"{health}Watch")(message),
            channel.stream_stream(f"{reflection}ServerReflectionInfo")(iter([message])),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="can't be parsed") as raised:
                await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
            check(raised.value.details(), models)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([asked])):
        names = {service.name for service in answer.list_services_response.service}
        assert names >= {"grpc.health.v1.Health", "pawprint.v1.ClassifierService"}


async def test_a_fault_inside_says_only_that_there_is_one(
    running: Running, channel: grpc.aio.Channel, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = running.server.catalogue.models["pets"].versions[1]

    def broken(images: np.ndarray, alone: bool) -> None:
        raise RuntimeError(f"{models}/pets/1/model.onnx at 0x7f00dead")

    served.batcher._run_model = broken
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    photo = encode(drawing(), "PNG")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Classify(pb.ClassifyRequest(model="pets", images=[photo]))
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details() == "internal error of the server"
    assert "0x7f00dead" in caplog.text  # the operator sees it


async def test_limits_on_calls_and_streams_refuse_with_the_time_to_wait(models: Path) -> None:
    async with (
        running_server(models, max_calls=2, max_streams=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        request = pb.ClassifyRequest(model="pets", images=[encode(drawing(), "PNG")])
        held = HeldModel(running.server)
        calls = [stub.Classify(request) for _ in range(2)]
        await held.admitted(2)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Classify(request)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert raised.value.details() == "2 of 2 calls are being answered; try again later"
        assert "grpc-status-details-bin" in dict(raised.value.trailing_metadata())
        held.release()
        for call in calls:
            await call
        await stub.Classify(request)
        stream = stub.ClassifyStream()
        await stream.write(pb.ClassifyStreamRequest(request_id=1, request=request))
        await stream.read()
        second = stub.ClassifyStream()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in second:
                pass
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        third = stub.ClassifyStream()
        await third.write(pb.ClassifyStreamRequest(request_id=2, request=request))
        assert (await third.read()).request_id == 2
        third.cancel()

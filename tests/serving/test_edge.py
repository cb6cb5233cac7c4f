"""What calls cost that are refused, and what is told of them: over real servers."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.inference import grpc_service_pb2 as inference
from protos.inference import grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.edge import Call, _request_id
from serving.errors import InvalidRequest, Overloaded
from serving.inference_messages import photos_of
from serving.wire_scan import check_parts, fields_of
from tests.conftest import Running, ServerProcess, running_server
from tests.faults.connections import never_read
from tests.faults.process import MIB, forget_peak, peak_mib, resident_mib
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.held_model import HeldModel, until
from tests.serving.test_metrics import fetch
from tests.serving.test_tokens import entry

Code = grpc.StatusCode
LARGE = [("grpc.max_send_message_length", -1)]
INFER, CLASSIFY = "/inference.GRPCInferenceService/ModelInfer", "/pawprint.v1.ClassifierService/"
EMPTY_INPUT = b"\x2a\x00"  # ModelInferRequest.inputs, without content
TOKENS = entry("shop", "secret") + entry("till", "other")
SECRET, OTHER = ([("authorization", f"Bearer {token}")] for token in ("secret", "other"))


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    return str(path)


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address, LARGE) as opened:
        yield opened


def told(running: Running) -> list[Call]:
    """The calls that the sinks of the server are told of from now on."""
    calls: list[Call] = []
    edge = running.server._edge
    edge._sinks = (*edge._sinks, calls.append)
    return calls


async def refusal(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        await call
    return raised.value


# --- before a message is parsed


@pytest.mark.parametrize(
    ("message", "metadata", "code"),
    [
        (EMPTY_INPUT * (4 * MIB), [], Code.UNAUTHENTICATED),
        (bytes(60 * MIB), [], Code.UNAUTHENTICATED),
        (EMPTY_INPUT * (4 * MIB), SECRET, Code.INVALID_ARGUMENT),
    ],
    ids=["no token, 8 MiB of inputs", "no token, 60 MiB", "8 MiB of inputs"],
)
def test_a_message_costs_little_before_it_is_refused(
    models: Path,
    start: Callable[..., ServerProcess],
    tokens: str,
    message: bytes,
    metadata: list[tuple[str, str]],
    code: grpc.StatusCode,
) -> None:
    """Parsed, eight MiB of empty inputs take 350; without a token not even the bytes are taken."""
    server = start(models, "--tokens", tokens)
    pid = server.process.pid
    with grpc.insecure_channel(server.address, LARGE) as opened:
        send = opened.unary_unary(INFER)
        with pytest.raises(grpc.RpcError):
            send(b"", metadata=metadata)
        before = resident_mib(pid)
        forget_peak(pid)
        with pytest.raises(grpc.RpcError) as raised:
            send(message, metadata=metadata)
    assert raised.value.code() is code
    assert peak_mib(pid) - before < 32


def parsed(message: inference.ModelInferRequest) -> None:
    check_parts(message.SerializeToString(), fields_of(message.DESCRIPTOR))


def test_parts_are_counted_down_to_the_last() -> None:
    most = 4096
    for alter in (
        lambda r, n: r.inputs.extend([r.InferInputTensor()] * n),
        lambda r, n: r.outputs.extend([r.InferRequestedOutputTensor()] * n),
        lambda r, n: r.raw_input_contents.extend([b""] * n),
        lambda r, n: r.inputs.add().shape.extend([1] * n),
        lambda r, n: r.inputs.add().contents.bytes_contents.extend([b""] * n),
        lambda r, n: r.inputs.add().contents.int64_contents.extend([1] * n),
        lambda r, n: r.inputs.add().contents.int_contents.extend([1] * n),
        lambda r, n: r.inputs.add().contents.bool_contents.extend([True] * n),
        lambda r, n: [r.parameters[str(i)] for i in range(n)],
        lambda r, n: [r.inputs.add().parameters["x"] for i in range(n)],
    ):
        good, bad = inference.ModelInferRequest(), inference.ModelInferRequest()
        for request, count in ((good, most // 8), (bad, most + 2000)):
            request.raw_input_contents.append(bytes(MIB))
            alter(request, count)
        parsed(good)
        with pytest.raises(InvalidRequest, match="more than 4,6.. fields and elements"):
            parsed(bad)


@pytest.mark.parametrize(
    ("head", "parts", "said"),
    [
        (b"\x3a\x80\x80\x40" + bytes(MIB), 4096 + 516 - 1, "more than 4,612 "),  # with itself
        (b"", 32 * 1024, "more than 4,128 "),  # 64 KiB, which cost little whatever they hold
    ],
    ids=["large", "small"],
)
def test_one_part_more_is_too_much(head: bytes, parts: int, said: str) -> None:
    fields = fields_of(inference.ModelInferRequest.DESCRIPTOR)
    check_parts(head + EMPTY_INPUT * parts, fields)
    with pytest.raises(InvalidRequest, match=said):
        check_parts(head + EMPTY_INPUT * (parts + 1), fields)


def test_what_calls_really_hold_is_not_too_much() -> None:
    floats = inference.ModelInferRequest(model_name="pets")  # refused later, for what it is
    floats.inputs.add(name="image", datatype="FP32").contents.fp32_contents.extend([0.5] * 10**6)
    parsed(floats)
    photos = pb.ClassifyRequest(model="pets", images=[bytes(4096)] * 10_000)
    check_parts(photos.SerializeToString(), fields_of(photos.DESCRIPTOR))


@pytest.mark.parametrize(
    "tail", [b"\x0a", b"\x0a\x05x", b"\x0b", b"\xff" * 11, b"\x2a\x02\x0a\x05"]
)
def test_bytes_that_are_no_message(tail: bytes) -> None:
    large = b"\x3a\x80\x80\x40" + bytes(MIB)  # raw_input_contents
    fields = fields_of(inference.ModelInferRequest.DESCRIPTOR)
    check_parts(large, fields)
    with pytest.raises(InvalidRequest, match="can't be parsed"):
        check_parts(large + tail, fields)


# --- before photos are looked at


@pytest.mark.parametrize("shape", [[1], [16 * MIB // 4], [1] * 200_000])
def test_the_elements_of_a_tensor_are_not_walked_through(shape: list[int]) -> None:
    """16 MiB of empty photos: the list of them would hold up the event loop for seconds."""
    request = inference.ModelInferRequest(model_name="pets")
    request.inputs.add(name="image", datatype="BYTES", shape=shape)
    request.raw_input_contents.append(bytes(16 * MIB))
    begin = time.process_time()
    with pytest.raises(InvalidRequest) as raised:
        photos_of(request, None, 32, 64)
    assert time.process_time() - begin < 0.1
    assert len(str(raised.value)) < 200


# --- afterwards


@pytest.mark.parametrize("fields", [{}, {"top_k": 9}, {"version": "9"}])
async def test_what_was_refused_is_forgotten_without_the_garbage_collector(
    channel: grpc.aio.Channel, fields: dict[str, object]
) -> None:
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    request = pb.ClassifyRequest(model="pets", images=[bytes(4 * MIB)], **fields)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            await refusal(stub.Classify(request))
        # The last call may still be on its way out.
        await until(lambda: tracemalloc.get_traced_memory()[0] < 4 * MIB)
    finally:
        tracemalloc.stop()
        gc.enable()


# --- what a caller is told


async def test_an_error_is_short_enough_to_arrive(
    running: Running, channel: grpc.aio.Channel
) -> None:
    """gRPC throws away the status of a call whose trailers are too long."""
    catalogue = running.server.catalogue
    many = {f"customer-model-number-{i:04d}": catalogue.models["pets"] for i in range(800)}
    running.server._edge.serve(Catalogue(many))
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    error = await refusal(stub.Classify(pb.ClassifyRequest(model="x", images=[b""])))
    assert error.code() is Code.NOT_FOUND
    assert error.details().endswith("customer-model-number-0019 and 780 more")
    # And holds nothing that has gRPC's own retries come at once.
    assert "grpc-retry-pushback-ms" not in dict(error.trailing_metadata())


def test_an_id_that_no_header_or_log_takes_is_replaced() -> None:
    """gRPC's own clients send none such; others may."""
    assert [_request_id(one) for one in ("a b", "x" * 128)] == ["a b", "x" * 128]
    made = {_request_id(one) for one in (None, "", "x" * 129, "katzenf\xfctterer", "a\tb")}
    assert {len(one) for one in made} == {32} and len(made) == 5


@pytest.mark.parametrize("text", ["x" * 100_000, "🐈" * 100_000])
async def test_a_message_of_any_length_arrives(
    running: Running, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def refuse() -> None:
        raise Overloaded(text, retry_after_s=1)

    monkeypatch.setattr(running.server._edge, "catalogue", refuse)
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    error = await refusal(stub.ListModels(pb.ListModelsRequest()))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert error.details() == text[: 1000 // len(text[0].encode())] + "..."
    assert "grpc-status-details-bin" in dict(error.trailing_metadata())


# --- streams whose answers nobody reads


WRONG = pb.ClassifyRequest(model="pets", images=[b"no photo"] * 60)


@pytest.mark.parametrize(
    "method", ["/pawprint.v1.ClassifierService/Classify", "/grpc.health.v1.Health/Check"]
)
async def test_a_compressed_message_is_not_unpacked(running: Running, method: str) -> None:
    """60 kB on the network would be 60 MiB here, whoever sends them."""
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(running.address, options) as channel:
        call = channel.unary_unary(method)(bytes(60 * 2**20), compression=grpc.Compression.Gzip)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        small = channel.unary_unary(method)(b"", compression=grpc.Compression.NoCompression)
        assert await small.code() is not grpc.StatusCode.UNIMPLEMENTED


async def test_messages_on_their_way_are_bounded_and_do_not_wait_for_ever(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else many large ones at once would take all memory before any is refused."""
    monkeypatch.setattr("serving.edge.ARRIVES_S", 1.0)
    async with (
        running_server(models, max_calls=2) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        slow = [channel.stream_unary("/pawprint.v1.ClassifierService/Classify")() for _ in range(2)]
        await until(lambda: running.server._edge.active == 2)
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        request = pb.ClassifyRequest(model="pets", images=[jpeg()])
        error = await refusal(stub.Classify(request))
        assert error.code() is Code.RESOURCE_EXHAUSTED and "2 calls" in error.details()
        for call in slow:
            assert await call.code() is Code.DEADLINE_EXCEEDED
            assert "did not arrive within 1 s" in await call.details()
        assert len((await stub.Classify(request)).results) == 1


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_only_a_few_messages_without_a_token_are_waited_for(
    running: Running, channel: grpc.aio.Channel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC takes each up to 65 MiB: without a token many of them would fill the memory."""
    monkeypatch.setattr("serving.malformed.SOON_S", 0.5)
    monkeypatch.setattr("serving.malformed.ARRIVES_S", 5.0)
    stub = health_pb2_grpc.HealthStub(channel)
    for _ in range(5):  # which have come, and take no place
        await stub.Check(health_pb2.HealthCheckRequest())
    slow = [channel.stream_stream(method)() for _ in range(10)]
    told = []
    for number, ended in enumerate(asyncio.as_completed([refusal(call) for call in slow])):
        error = await ended
        told.append((error.code(), error.details()))
        if number == 5:  # while four are waited for
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    late = "the message did not arrive within"
    assert told == [
        *[(Code.DEADLINE_EXCEEDED, f"{late} 0.5 s")] * 6,
        *[(Code.DEADLINE_EXCEEDED, f"{late} 5 s")] * 4,
    ]


async def test_streams_that_are_not_read_lock_nobody_out(models: Path) -> None:
    """Three of them hold 48 answered requests back, where 32 may be answered at once."""
    async with (
        running_server(models, max_calls=32) as running,
        grpc.aio.insecure_channel(running.address) as channel,
        AsyncExitStack() as stack,
    ):
        for _ in range(3):
            await stack.enter_async_context(never_read(running.address, WRONG, 1.0))
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        for _ in range(3):
            await stub.Classify(pb.ClassifyRequest(model="pets", images=[jpeg()]))
        edge = running.server._edge
        assert edge._streams.total() == 3 and edge.active == 0


async def test_a_stream_that_is_not_read_is_ended(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.edge.STALLED_S", 0.5)
    async with (
        running_server(models, max_streams=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        edge, calls = running.server._edge, told(running)
        async with never_read(running.address, WRONG, 1.0) as sent:
            await until(lambda: not edge._streams.total())
            assert sent > 16
            assert [c.method for c in calls if c.code is Code.UNAVAILABLE] == ["ClassifyStream"]
        stream = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
        await stream.write(pb.ClassifyStreamRequest(request_id=7))
        assert (await stream.read()).request_id == 7
        stream.cancel()
    assert not caplog.records


async def test_the_calls_of_one_token_leave_as_many_free(models: Path, tokens: str) -> None:
    async with (
        running_server(models, tokens=tokens, max_calls=4) as running,
        grpc.aio.insecure_channel(running.address) as channel,
        AsyncExitStack() as stack,
    ):
        for _ in range(2):  # whose messages never come
            call = channel.stream_unary("/pawprint.v1.ClassifierService/Classify")(metadata=SECRET)
            stack.callback(call.cancel)
        await until(lambda: running.server._edge.active == 2)
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        request = pb.ClassifyRequest(model="pets", images=[jpeg()])
        error = await refusal(stub.Classify(request, metadata=SECRET))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "2 of 4 calls are being answered, 2 of this token" in error.details()
        assert len((await stub.Classify(request, metadata=OTHER)).results) == 1


async def test_low_priority_leaves_half_of_the_places_of_calls(models: Path) -> None:
    """In a stream, alone and over the other protocol; the others find room all the while."""
    pixels = inference.ModelInferRequest(model_name="pets")
    pixels.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        jpeg()
    )
    pixels.parameters["priority"].uint64_param = 2
    async with (
        running_server(models, max_calls=6) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        edge, held = running.server._edge, HeldModel(running.server)
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        low = pb.ClassifyRequest(model="pets", images=[jpeg()], priority=pb.PRIORITY_LOW)
        stream = stub.ClassifyStream()
        await stream.write(pb.ClassifyStreamRequest(request_id=0, request=low))
        calls = [asyncio.ensure_future(stub.Classify(low)) for _ in range(2)]
        await held.admitted(3)  # a call has its place before its priority is known
        text = "3 of 3 calls are being answered that may be of low priority"
        await stream.write(pb.ClassifyStreamRequest(request_id=1, request=low))
        await until(lambda: len(edge._calls._line) == 1)  # that of a stream waits
        infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        for refused in (stub.Classify(low), infer(pixels)):
            assert text in (await refusal(refused)).details()
        high = pb.ClassifyRequest(model="pets", images=[jpeg()])
        calls += [asyncio.ensure_future(stub.Classify(high)) for _ in range(3)]
        await until(lambda: edge.active == 6)
        held.release()
        for call in calls:
            assert len((await call).results) == 1
        assert {(await stream.read()).request_id for _ in range(2)} == {0, 1}
        await until(lambda: edge.active == 0)
        assert len((await infer(pixels)).outputs) == 2, "the places are free again"
        stream.cancel()


async def test_the_streams_of_one_token_leave_as_many_free(models: Path, tokens: str) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            running_server(models, tokens=tokens, max_streams=4)
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.address))
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)

        async def opened(metadata: list[tuple[str, str]]) -> grpc.aio.Call:
            stream = stub.ClassifyStream(metadata=metadata)
            stack.callback(stream.cancel)
            await stream.write(pb.ClassifyStreamRequest(request_id=1))
            await stream.read()
            return stream

        first, _ = [await opened(SECRET) for _ in range(2)]
        error = await refusal(stub.ClassifyStream(metadata=SECRET))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "2 of 4 streams are open, 2 of this token" in error.details()
        await opened(OTHER)
        error = await refusal(stub.ClassifyStream(metadata=OTHER))
        assert "3 of 4 streams are open, 1 of this token" in error.details()
        first.cancel()
        await until(lambda: running.server._edge._streams.total() == 2)
        await opened(OTHER)


# --- what is told of a call that was refused


async def test_a_refused_call_and_a_refused_stream_are_told_of(models: Path, tokens: str) -> None:
    async with (
        running_server(models, tokens=tokens, max_streams=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        calls = told(running)

        async def check(call: grpc.aio.Call, method: str, code: grpc.StatusCode) -> None:
            error = await refusal(call)
            assert error.code() is code
            assert dict(error.trailing_metadata())["x-request-id"] == "mine"
            (one,) = calls
            assert (one.method, one.code, one.request_id) == (method, code, "mine")
            calls.clear()

        mine = [("x-request-id", "mine")]
        unary = channel.unary_unary(f"{CLASSIFY}Classify")
        stream = channel.stream_stream(f"{CLASSIFY}ClassifyStream")
        await check(unary(b"\xff\xff", metadata=mine), "Classify", Code.UNAUTHENTICATED)
        await check(stream(metadata=mine), "ClassifyStream", Code.UNAUTHENTICATED)
        mine += SECRET
        await check(unary(b"\xff\xff", metadata=mine), "Classify", Code.INVALID_ARGUMENT)
        malformed = stream(iter([b"\xff\xff"]), metadata=mine)
        await check(malformed, "ClassifyStream", Code.INVALID_ARGUMENT)
        first = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream(metadata=SECRET)
        await first.write(pb.ClassifyStreamRequest(request_id=1))
        await first.read()
        calls.clear()
        await check(stream(metadata=mine), "ClassifyStream", Code.RESOURCE_EXHAUSTED)
        first.cancel()


async def test_a_call_without_a_message_is_the_callers_mistake(
    running: Running, channel: grpc.aio.Channel
) -> None:
    calls = told(running)
    call = channel.stream_unary(f"{CLASSIFY}Classify")()
    await call.done_writing()
    error = await refusal(call)
    assert (error.code(), error.details()) == (Code.INVALID_ARGUMENT, "the call holds no message")
    assert [call.code for call in calls] == [Code.INVALID_ARGUMENT]


async def test_a_deadline_that_passes_is_told_as_one(
    running: Running, channel: grpc.aio.Channel
) -> None:
    calls, held = told(running), HeldModel(running.server)
    await channel.channel_ready()
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    request = pb.ClassifyRequest(model="pets", images=[jpeg()])
    stream = stub.ClassifyStream(timeout=1)
    await stream.write(pb.ClassifyStreamRequest(request_id=1, request=request))
    uploading = channel.stream_unary(f"{CLASSIFY}Classify")(timeout=1)
    for call in (stub.Classify(request, timeout=1), stream, uploading):
        assert (await refusal(call)).code() is Code.DEADLINE_EXCEEDED
    await until(lambda: len(calls) == 3)
    assert {call.code for call in calls} == {Code.DEADLINE_EXCEEDED}
    calls.clear()
    left = stub.Classify(request, timeout=60)
    await held.admitted(1)
    left.cancel()
    await until(lambda: len(calls) == 1)
    assert calls[0].code is Code.CANCELLED
    held.release()


async def test_a_version_that_restarts_is_not_ready_whoever_asks(models: Path) -> None:
    port = free_port()
    async with (
        running_server(models, metrics_port=port) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)

        async def ready() -> set[bool]:
            serving = await health.Check(health_pb2.HealthCheckRequest())
            _, metrics = await asyncio.to_thread(fetch, port, "/metrics")
            return {
                serving.status == health_pb2.HealthCheckResponse.SERVING,
                (await stub.ServerReady(inference.ServerReadyRequest())).ready,
                (await stub.ModelReady(inference.ModelReadyRequest(name="pets"))).ready,
                (await asyncio.to_thread(fetch, port, "/readyz"))[0] == 200,
                "\npawprint_ready 1.0\n" in metrics,
            }

        assert await ready() == {True}
        catalogue = running.server.catalogue
        pets = catalogue.models["pets"]
        restarting = replace(pets, versions={}, restarting=frozenset({1}))
        await running.server._on_change(Catalogue({"pets": restarting}))
        assert await ready() == {False}
        other = replace(pets, name="cats")
        await running.server._on_change(Catalogue({"cats": other, "pets": restarting}))
        assert (await stub.ServerReady(inference.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(inference.ModelReadyRequest(name="pets"))).ready
        await running.server._on_change(catalogue)
        assert await ready() == {True}


async def test_the_seconds_of_a_call_begin_once_its_message_is_here(
    running: Running, channel: grpc.aio.Channel
) -> None:
    calls = told(running)
    slow = channel.stream_unary("/pawprint.v1.ClassifierService/ListModels")()
    await until(lambda: running.server._edge._here == 1)
    begin = time.monotonic()
    await slow.write(b"")
    await slow.done_writing()
    await slow
    assert begin <= calls[0].start <= calls[0].end


# --- the end


async def test_a_drain_ends_once_no_call_has_come_for_a_while(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge, waits = running.server._edge, []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) < 3:
            with edge._present():  # a call comes and goes
                pass

    monkeypatch.setattr("asyncio.sleep", sleep)
    await edge.drain(0.5)
    assert waits == [0.5] * 3


async def test_a_stream_that_comes_while_the_server_drains_is_told(
    running: Running, channel: grpc.aio.Channel
) -> None:
    """As one that gRPC had accepted already."""
    await running.server._edge.drain(0)
    stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
    error = await refusal(stub.ClassifyStream(timeout=20))
    assert error.code() is Code.UNAVAILABLE and error.details() == "the server is shutting down"

"""ClassifyStream over a real socket."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from tests.conftest import Running, running_server
from tests.photos import jpeg
from tests.serving.held_model import HeldModel, until
from tests.serving.test_service import check, request

Code = grpc.StatusCode


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[classifier_pb2_grpc.ClassifierServiceStub]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield classifier_pb2_grpc.ClassifierServiceStub(channel)


def part(number: int, message: pb.ClassifyRequest) -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(request_id=number, request=message)


async def answers(call) -> dict[int, pb.ClassifyStreamResponse]:
    found: dict[int, pb.ClassifyStreamResponse] = {}
    async for response in call:
        assert response.request_id not in found
        found[response.request_id] = response
    return found


async def all_answered(stream, count: int) -> None:
    """Each of `count` photos, none with an error."""
    found = await answers(stream)
    assert sorted(found) == list(range(count))
    assert all(answer.HasField("response") for answer in found.values())


async def test_every_request_is_answered_once(stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(100)]

    async def requests() -> AsyncIterator[pb.ClassifyStreamRequest]:
        for number, photo in enumerate(photos):
            yield part(1000 + number, request(photo))

    found = await answers(stub.ClassifyStream(requests()))
    assert sorted(found) == list(range(1000, 1100))
    for number, photo in enumerate(photos):
        check(found[1000 + number].response.results[0], photo)


async def test_a_bad_request_is_told_and_the_stream_goes_on(stub) -> None:
    parts = {
        1: (request(jpeg()), None),
        2: (request(jpeg(), model="cars"), Code.NOT_FOUND),
        3: (request(b"junk"), Code.INVALID_ARGUMENT),
        4: (request(), Code.INVALID_ARGUMENT),
        5: (request(jpeg(), top_k=9), Code.INVALID_ARGUMENT),
        6: (request(jpeg(seed=1)), None),
    }

    async def requests() -> AsyncIterator[pb.ClassifyStreamRequest]:
        for number, (message, _) in parts.items():
            yield part(number, message)

    found = await answers(stub.ClassifyStream(requests()))
    assert sorted(found) == sorted(parts)
    for number, (message, code) in parts.items():
        if code is None:
            check(found[number].response.results[0], message.images[0])
        else:
            assert found[number].error.code == code.value[0] and found[number].error.message


async def test_an_empty_stream_ends(stub) -> None:
    call = stub.ClassifyStream()
    await call.done_writing()
    assert await answers(call) == {}
    assert await call.code() is Code.OK


@pytest.mark.parametrize(
    "settings",
    [
        {"max_stream_in_flight": 3},
        {"max_queue": 5, "max_photos": 5, "max_batch": 4},  # which no caller alone has all of
    ],
)
async def test_no_more_is_read_than_may_be_in_flight(
    models: Path, settings: dict[str, int]
) -> None:
    """The rest waits with the caller, whose writes are held back: memory here stays bounded, and
    nothing is refused."""
    async with (
        running_server(models, **settings) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        held = HeldModel(running.server)
        call = stub.ClassifyStream()
        for number in range(10):
            await call.write(part(number, request(jpeg())))
        await call.done_writing()
        await held.admitted(3)
        await asyncio.sleep(0.1)
        await held.admitted(3)
        held.release()
        found = await answers(call)
        assert sorted(found) == list(range(10))
        assert all(answer.HasField("response") for answer in found.values())


async def written(stub, count: int, **how: object) -> grpc.aio.Call:
    """A stream of so many requests."""
    call = stub.ClassifyStream()
    for number in range(count):
        await call.write(part(number, request(jpeg(), **how)))
    await call.done_writing()
    return call


async def test_streams_leave_half_of_the_places_and_wait_for_theirs(models: Path) -> None:
    """They would take all, and have the more of their own requests refused the more they send."""
    async with (
        running_server(models, max_calls=4) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        edge, held = running.server._edge, HeldModel(running.server)
        streams = [await written(stub, 8) for _ in range(3)]
        await held.admitted(2)
        # Of each no more is read than what waits.
        await until(lambda: len(edge._calls._line) == 3)
        assert edge.active == 2
        calls = [asyncio.ensure_future(stub.Classify(request(jpeg()))) for _ in range(2)]
        await held.admitted(4)
        with pytest.raises(grpc.aio.AioRpcError, match="4 of 4 calls are being answered"):
            await stub.Classify(request(jpeg()))
        assert len(edge._calls._line) == 3
        held.release()
        for call in calls:
            check((await call).results[0], jpeg())
        for stream in streams:
            await all_answered(stream, 8)
        assert edge.active == 0 and not edge._calls._line


@pytest.mark.parametrize("streams", [2, 8])
async def test_streams_leave_half_of_a_small_queue_and_wait_for_room(
    models: Path, streams: int
) -> None:
    """They would take all of it, and lose most of their photos."""
    async with (
        running_server(models, max_queue=16, max_photos=8) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        held = HeldModel(running.server)
        waiting = [await written(stub, 30) for _ in range(streams)]
        await held.admitted(8)
        await until(lambda: running.server._edge.active == 16 * streams)  # as many are in flight
        several = stub.Classify(request(*[jpeg()] * 8))
        await held.admitted(16)
        with pytest.raises(grpc.aio.AioRpcError, match="the queue is full"):
            await stub.Classify(request(jpeg()))
        held.release()
        assert len((await several).results) == 8
        for stream in waiting:
            await all_answered(stream, 30)
        await held.admitted(0)


async def test_a_request_of_a_stream_comes_in_whole_where_few_places_are_left(
    models: Path,
) -> None:
    """Else one of many photos would wait for as long as others of few come by."""
    async with (
        running_server(models, max_queue=16, max_photos=8) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        held = HeldModel(running.server)
        few = await written(stub, 3)
        await held.admitted(3)
        many = stub.ClassifyStream()
        await many.write(part(0, request(*[jpeg()] * 8)))
        await many.done_writing()
        await held.admitted(11)
        last = await written(stub, 1)
        await until(lambda: running.server._edge.active == 5)
        await held.admitted(11)
        held.release()
        assert len((await answers(many))[0].response.results) == 8
        for stream, count in ((few, 3), (last, 1)):
            assert len(await answers(stream)) == count


async def test_streams_of_low_priority_leave_the_others_places_to_wait_for(models: Path) -> None:
    """While the others keep the server busy they are answered hardly at all."""
    async with (
        running_server(models, max_calls=8) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        calls, held = running.server._edge._calls, HeldModel(running.server)
        low = [await written(stub, 4, priority=pb.PRIORITY_LOW) for _ in range(3)]
        await until(lambda: len(calls._line) == 3)
        high = await written(stub, 2)
        await held.admitted(4)
        assert calls._low == 2 and len(calls._line) == 3
        held.release()
        for stream, count in ((high, 2), *((one, 4) for one in low)):
            await all_answered(stream, count)
        assert (calls.total(), calls._low, calls._low_from_line) == (0, 0, 0)


async def test_a_stream_of_low_priority_waits_where_calls_of_it_have_all_its_places(
    models: Path,
) -> None:
    async with (
        running_server(models, max_calls=4) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        held, low = HeldModel(running.server), request(jpeg(), priority=pb.PRIORITY_LOW)
        calls = [asyncio.ensure_future(stub.Classify(low)) for _ in range(2)]
        await held.admitted(2)
        stream = await written(stub, 2, priority=pb.PRIORITY_LOW)
        await until(lambda: len(running.server._edge._calls._line) == 1)
        held.release()
        for call in calls:
            check((await call).results[0], jpeg())
        assert all(answer.HasField("response") for answer in (await answers(stream)).values())


async def test_streams_that_wait_for_a_place_can_be_left(models: Path) -> None:
    async with (
        running_server(models, max_calls=2) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        calls, held = running.server._edge._calls, HeldModel(running.server)
        streams = [await written(stub, 3) for _ in range(3)]
        await until(lambda: len(calls._line) == 3)
        waiting = streams.pop()
        waiting.cancel()
        await until(lambda: len(calls._line) == 2)
        assert calls.total() == 1
        held.release()
        for stream in streams:
            assert sorted(await answers(stream)) == [0, 1, 2]
        assert calls.total() == 0 and not calls._line


async def test_a_stream_starves_no_call_and_no_other_stream(running: Running, stub) -> None:
    """16 requests of each of two wait; what comes later is in the very next batch."""
    held = HeldModel(running.server)
    first = stub.Classify(request(jpeg()))
    await held.running(1)
    streams = [stub.ClassifyStream() for _ in range(2)]
    for call in streams:
        for number in range(16):
            await call.write(part(number, request(jpeg())))
        await call.done_writing()
    await held.waiting(32)
    streams.append(stub.ClassifyStream())
    await streams[-1].write(part(0, request(jpeg(seed=8))))
    await streams[-1].done_writing()
    single = stub.Classify(request(jpeg(seed=9)))
    await held.waiting(34)
    held.release()
    check((await single).results[0], jpeg(seed=9))
    assert held.batches[:2] == [1, 16]
    usual = held.pictures[0][0]
    assert sum(not np.array_equal(one, usual) for one in held.pictures[1]) == 2
    await first
    for call, count in zip(streams, (16, 16, 1), strict=True):
        assert len(await answers(call)) == count


async def test_a_caller_that_vanishes_leaves_the_server_sound(
    running: Running, stub, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldModel(running.server)
    channel = grpc.aio.insecure_channel(running.address, [("grpc.use_local_subchannel_pool", 1)])
    call = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
    for number in range(10):
        await call.write(part(number, request(jpeg())))
    await held.admitted(10)
    await channel.close()
    await held.admitted(0)
    held.release()
    check((await stub.Classify(request(jpeg()))).results[0], jpeg())
    assert not caplog.records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{"max_calls": 8}, {"max_queue": 16, "max_photos": 16}])
async def test_callers_that_leave_at_any_moment(
    models: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, int], seed: int
) -> None:
    """60 streams, each cut off somewhere between its first write and its last answer; most of them
    while they wait for a place."""
    async with running_server(models, **settings) as running:
        # Which ends them all: of some grpc.aio's client forgets that their task was cancelled.
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            await leaving_at_any_moment(stub, random.Random(seed))
        edge, decoders = running.server._edge, running.server._classifier._decoders
        held = HeldModel(running.server)
        await held.admitted(0)
        assert not held._served.batcher._line
        await until(lambda: not edge._here and not edge.active and not edge._streams.total())
        assert not edge._calls._line and not edge._calls._from_line and not edge._reading
        await until(lambda: not decoders._waiting and not decoders._postponed)
    assert not caplog.records, caplog.text


async def leaving_at_any_moment(stub, generator: random.Random) -> None:
    photo = jpeg()

    async def caller() -> None:
        call = stub.ClassifyStream()
        for number in range(20):
            await call.write(part(number, request(photo)))
        await call.done_writing()
        await answers(call)

    # The task is cancelled, not the call: grpc.aio's client waits for ever in a write to a call
    # that was cancelled before its metadata were sent.
    callers = [asyncio.create_task(caller()) for _ in range(60)]
    for task in callers:
        asyncio.get_running_loop().call_later(generator.random() * 0.3, task.cancel)
    await asyncio.wait(callers)
    assert any(task.cancelled() for task in callers)
    for task in callers:
        assert task.cancelled() or task.exception() is None
    check((await stub.Classify(request(photo))).results[0], photo)


async def test_a_cancelled_stream_leaves_the_queue(running: Running, stub) -> None:
    held = HeldModel(running.server)
    call = stub.ClassifyStream()
    for number in range(10):
        await call.write(part(number, request(jpeg())))
    await held.admitted(10)
    call.cancel()
    await held.admitted(0)
    held.release()
    check((await stub.Classify(request(jpeg()))).results[0], jpeg())


async def test_the_deadline_of_a_stream_holds_for_its_requests(running: Running, stub) -> None:
    held = HeldModel(running.server)
    call = stub.ClassifyStream(timeout=0.3)
    await call.write(part(1, request(jpeg())))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers(call)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    held.release()
    await held.admitted(0)

"""Streams of our clients when the server that answers them goes away."""

import asyncio
import queue
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.answers import StreamedResult
from serving.channel import MAX_ATTEMPTS
from serving.client import AsyncClient, Client
from serving.client_batches import Asked
from serving.client_stream import StreamState, after_end
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unavailable,
)
from serving.outbox import Outbox
from tests.conftest import ServerProcess, running_server
from tests.photos import jpeg
from tests.serving.cut_proxy import cut_proxy
from tests.tiny import build_version

PHOTOS = 60


class Leaving(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answers `answers` requests of each stream, then ends it with `code`; notes what it reads."""

    def __init__(self, answers: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.answers, self.code = answers, code
        self.details, self.leaves_after_each = "as scripted", False
        self.streams: list[list[int]] = []
        self.requests: list[pb.ClassifyRequest] = []
        self.refused: dict[int, list[float]] = {}  # when each was
        self.refuse_s = 0.0

    async def ClassifyStream(self, requests, context):  # noqa: N802 - as in the proto
        read: list[int] = []
        self.streams.append(read)
        async for request in requests:
            images = request.request.images
            read.append(request.request_id)
            self.requests.append(request.request)
            if len(read) > self.answers or b"poison" in images:
                if self.code is grpc.StatusCode.OK:
                    return
                await context.abort(self.code, self.details)
            times = self.refused.setdefault(request.request_id, [])
            if self.refuse_s and len(times) < 2:
                assert all(time.monotonic() - at > self.refuse_s for at in times)
                times.append(time.monotonic())
                error = pb.RequestError(code=8, retry_after_ms=int(1e3 * self.refuse_s))
                yield pb.ClassifyStreamResponse(request_id=request.request_id, error=error)
                continue
            yield pb.ClassifyStreamResponse(
                request_id=request.request_id,
                response=pb.ClassifyResponse(
                    model="pets", version=1, results=[pb.ImageResult() for _ in images]
                ),
            )
            if self.leaves_after_each:
                await context.abort(self.code, self.details)


@pytest.fixture
async def leaving() -> AsyncIterator[tuple[Leaving, str]]:
    script = Leaving(7)
    server = grpc.aio.server()
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield script, f"127.0.0.1:{port}"
    await server.stop(0)


both = pytest.mark.parametrize("kind", [AsyncClient, Client])
TOGETHER = [partial(AsyncClient, max_batch=4), partial(Client, max_batch=4)]
# Also where photos share messages.
each = pytest.mark.parametrize(
    "kind",
    [AsyncClient, Client, *TOGETHER],
    ids=["AsyncClient", "Client", "AsyncClient-together", "Client-together"],
)


@each
@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "as scripted"),
        (grpc.StatusCode.CANCELLED, "as scripted"),
        # What gRPC makes of a proxy whose server has gone.
        (grpc.StatusCode.INTERNAL, "RST_STREAM (Received RST_STREAM with error code 2)"),
    ],
)
async def test_what_is_unanswered_is_sent_again_and_nothing_else(
    kind, code, details, leaving
) -> None:
    script, address = leaving
    script.code, script.details = code, details
    answers = await answers_to(kind, address, [b"x"] * PHOTOS, in_flight=4)
    assert sorted(answer.index for answer in answers) == list(range(PHOTOS))
    assert len(script.streams) > len(set(sum(script.streams, []))) // 8
    # Of each stream that was lost no more than what was in flight is sent a second time.
    assert all(len(read) == len(set(read)) for read in script.streams)
    assert sum(map(len, script.streams)) <= PHOTOS + 4 * (len(script.streams) - 1)


@each
async def test_a_stream_that_is_lost_while_nothing_is_awaited_goes_on(kind, leaving) -> None:
    script, address = leaving
    script.leaves_after_each = True

    def slow() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x"
            time.sleep(0.05)

    answers = await answers_to(kind, address, slow(), in_flight=1, timeout_s=10)
    assert [answer.index for answer in answers] == list(range(4))


@both
async def test_each_photo_is_asked_of_as_the_caller_says(kind, leaving) -> None:
    script, address = leaving
    options = {"version": "canary", "top_k": 3, "low_priority": True}
    assert len(await answers_to(kind, address, [b"x", b"y"], **options)) == 2
    for photo, request in zip((b"x", b"y"), script.requests, strict=True):
        assert request == pb.ClassifyRequest(
            model="pets", version="canary", images=[photo], top_k=3, priority=pb.PRIORITY_LOW
        )


@each
async def test_a_stream_ends_with_its_photos(kind, leaving) -> None:
    """Of which there may be none, or none left when all are answered."""

    def slow() -> Iterator[bytes]:
        yield b"x"
        time.sleep(0.1)

    assert await answers_to(kind, leaving[1], [], timeout_s=10) == []
    assert len(await answers_to(kind, leaving[1], slow(), timeout_s=10)) == 1


@each
async def test_a_photo_that_ends_every_stream_is_sent_so_often_and_no_more(kind, leaving) -> None:
    script, address = leaving
    script.answers = PHOTOS
    photos = [b"x"] * 5 + [b"poison"] + [b"x"] * 500
    with pytest.raises(Unavailable):
        await answers_to(kind, address, photos, in_flight=4)
    sent = [request.images for request in script.requests]
    assert 1 < sum(b"poison" in images for images in sent) <= MAX_ATTEMPTS


@each
async def test_a_stream_that_ends_as_if_all_were_well_loses_nothing(kind, leaving) -> None:
    """As one through a proxy may."""
    script, address = leaving
    script.code = grpc.StatusCode.OK
    answers = await answers_to(kind, address, [b"x"] * PHOTOS, in_flight=4)
    assert sorted(answer.index for answer in answers) == list(range(PHOTOS))
    script.answers = 0
    with pytest.raises(Unavailable, match="ended the stream before all was answered"):
        await answers_to(kind, address, [b"x"])


@each
@pytest.mark.parametrize("answers", [7, 3 * PHOTOS])
async def test_what_is_refused_for_now_is_sent_again_when_the_server_says(
    kind, answers, leaving
) -> None:
    """Twice each; also if the stream is lost meanwhile, and when all others are answered."""
    script, address = leaving
    script.answers, script.refuse_s = answers, 0.1
    found = await answers_to(kind, address, [b"x"] * 20, in_flight=4)
    assert sorted(answer.index for answer in found) == list(range(20))
    assert all(answer.result.error is None for answer in found)
    assert {len(times) for times in script.refused.values()} == {2}
    assert len(script.refused) == 20 or kind in TOGETHER
    assert len(script.streams) == 1 or answers == 7


@each
async def test_a_stream_that_has_nothing_but_refusals_says_so(kind, leaving) -> None:
    script, address = leaving
    script.answers, script.refuse_s = PHOTOS, 0.5
    with pytest.raises(DeadlineExceeded, match="no answer came for 0.2 s; the last time it was: "):
        await answers_to(kind, address, [b"x"], timeout_s=0.2)


async def test_a_caller_may_take_its_time_between_photos(leaving) -> None:
    """What is awaited is an answer, not the next photo."""
    script, address = leaving
    script.answers = PHOTOS

    def slow() -> Iterator[bytes]:
        yield b"x"
        time.sleep(3.0)
        yield b"x"

    assert len(await answers_to(Client, address, slow(), timeout_s=2)) == 2


@both
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),  # no photo is too large
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.INTERNAL, PawprintError),
    ],
)
async def test_an_error_that_no_other_server_would_mend_is_raised_at_once(
    kind, code, error, leaving
) -> None:
    script, address = leaving
    script.code = code
    with pytest.raises(error, match="as scripted"):
        await answers_to(kind, address, [b"poison"])
    assert len(script.streams) == 1


@pytest.mark.parametrize(
    "kind, number",
    [(AsyncClient, signal.SIGKILL), (Client, signal.SIGKILL), (Client, signal.SIGTERM)],
)
async def test_the_end_of_a_server_costs_a_stream_nothing(
    kind, number: int, models: Path, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    build_version(tmp_path / "other", "pets", size=32)
    build_version(tmp_path / "other", "pets", size=32)
    shutil.rmtree(tmp_path / "other/pets/1")
    servers = {1: start(models), 2: start(tmp_path / "other")}  # by the version that each has
    address = ",".join(server.address for server in servers.values())
    answers: list[StreamedResult] = []
    async for answer in _stream(kind, address, [jpeg()] * 200):
        answers.append(answer)
        if len(answers) == 50:
            servers[answers[0].response.version].process.send_signal(number)
    assert sorted(answer.index for answer in answers) == list(range(200))
    assert all(answer.result.labels for answer in answers)
    assert {answer.response.version for answer in answers} == {1, 2}


@both
async def test_a_connection_that_is_too_old_is_replaced(kind, models: Path) -> None:
    """And what was on its way on it is answered all the same."""

    def photos() -> Iterator[bytes]:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            yield jpeg()

    async with running_server(models, max_connection_age_s=0.5, drain_s=0.3) as running:
        with cut_proxy(int(running.address.rpartition(":")[2])) as way:
            answers = await answers_to(kind, f"127.0.0.1:{way.port}", photos())
    assert sorted(answer.index for answer in answers) == list(range(len(answers)))
    assert all(answer.result.labels for answer in answers) and way.connections > 1


@each
async def test_photos_larger_than_the_server_takes_leave_the_others_unharmed(
    kind, models: Path
) -> None:
    """More of them than a request has attempts, several at once, in the middle and at the end."""
    photos = [jpeg(seed=seed) for seed in range(40)]
    large = {3, 4, 5, 6, 17, 18, 39}
    for index in large:
        photos[index] += bytes((4 + index % 3) * 2**20)
    little = {8, 30}  # no more than the margin that gRPC leaves to the server's own limit
    for index in little:
        photos[index] += bytes(2**21 + 2**19)
    async with running_server(models, max_message_mib=2) as running:
        answers = await answers_to(kind, running.address, photos, in_flight=5)
    assert sorted(answer.index for answer in answers) == list(range(40))
    refused = {answer.index: answer.result.error for answer in answers if answer.result.error}
    assert refused.keys() == large | little
    assert all("than the server takes" in refused[index] for index in large)
    assert not any("can't be read" in refused[index] for index in large)  # each could be
    assert all("bytes; at most 2,097,152 are allowed" in refused[index] for index in little)


@both
async def test_once_one_was_too_large_no_larger_one_is_sent(kind, leaving) -> None:
    script, address = leaving
    script.answers, script.details = PHOTOS, "Received message larger than max"
    script.code = grpc.StatusCode.RESOURCE_EXHAUSTED
    photos = [b"poison", b"as large", b"small"]
    answers = await answers_to(kind, address, photos, in_flight=1)
    assert [answer.result.error is None for answer in answers] == [False, False, True]
    assert sum(script.streams, []) == [0, 2]


def test_a_message_that_is_too_large_is_sent_photo_by_photo() -> None:
    state = StreamState("here:1", Asked("pets", "", 1, False, ""), max_batch=4)
    outbox: Outbox[queue.SimpleQueue] = Outbox(queue.SimpleQueue)
    for index, photo in enumerate([b"x"] * 4 + [b"large"] + [b"x"]):
        state.send(index, photo)
        outbox.put(*state.due())
    assert sent(outbox) == [1, 1, 4]
    over = (grpc.StatusCode.RESOURCE_EXHAUSTED, InvalidRequest("larger than the server takes"))
    assert after_end(outbox, state, *over) == ([], 0.0)
    assert sent(outbox) == [1] * 6
    (refused,), again_s = after_end(outbox, state, *over)
    assert (refused.index, refused.result.error, again_s) == (4, str(over[1]), 0.0)
    assert sent(outbox) == [1] * 5


def sent(outbox: Outbox[queue.SimpleQueue]) -> list[int]:
    """Photos of each message that the next stream begins with."""
    messages = outbox.open_queue()
    return [len(messages.get().request.images) for _ in range(messages.qsize())]


async def test_no_call_fails_where_connections_come_of_age(models: Path) -> None:
    async with running_server(models, max_connection_age_s=0.2) as running:
        with cut_proxy(int(running.address.rpartition(":")[2])) as way:
            async with AsyncClient(f"127.0.0.1:{way.port}") as client:
                while way.connections < 4:
                    calls = [client.classify([jpeg()], model="pets") for _ in range(8)]
                    for answer in await asyncio.gather(*calls):
                        assert answer.results[0].labels


async def answers_to(
    kind: Callable, address: str, photos: Iterable[bytes], **options: object
) -> list[StreamedResult]:
    return [answer async for answer in _stream(kind, address, photos, **options)]


async def _stream(
    kind: Callable, address: str, photos: Iterable[bytes], **options: object
) -> AsyncIterator[StreamedResult]:
    client = kind(address)
    if isinstance(client, AsyncClient):
        async with client:
            async for answer in client.stream(photos, model="pets", **options):
                yield answer
    else:
        with client:
            answers = client.stream(photos, model="pets", **options)
            while (answer := await asyncio.to_thread(next, answers, None)) is not None:
                yield answer

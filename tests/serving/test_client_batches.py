"""Calls made at once that share messages: the rule alone, and both clients with a real server."""

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.answers import Response, StreamedResult
from serving.client import AsyncClient, Client
from serving.client_batches import MOST_BYTES, UNDER_WAY, Asked, Batch, Batches, Call
from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from serving.together import AsyncTogether, Together
from tests.commands import run_python
from tests.conftest import Running, ServerProcess, running_server
from tests.photos import jpeg
from tests.serving.held_model import HeldModel, until
from tests.tiny import build_version

KINDS = pytest.mark.parametrize("kind", [AsyncClient, Client])
ASKED = Asked("m", "", 1, False, "")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in line does so until a test has it go, however slow the machine."""
    monkeypatch.setattr("serving.together.LONGEST_IN_LINE_S", 60.0)


def call_of(photos: int = 1, size: int = 1, asked: Asked = ASKED, patience: int = 0) -> Call:
    some = [bytes(size)] * photos
    return Call(asked=asked, photos=some, until=math.inf, answer=Future(), patience=patience)


def put(batches: Batches, call: Call) -> list[Batch]:
    """What is due then."""
    batches.put(call)
    return batches.due(call.line)


def sizes(batches: list[Batch]) -> list[int]:
    """Calls in each."""
    return [len(batch.calls) for batch in batches]


def answer_to(batch: Batch) -> pb.ClassifyResponse:
    count = sum(len(call.photos) for call in batch.calls)
    return pb.ClassifyResponse(results=[pb.ImageResult() for _ in range(count)])


def test_a_call_goes_alone_at_once_until_some_are_under_way() -> None:
    batches = Batches(8)
    under_way = [batch for _ in range(UNDER_WAY) for batch in put(batches, call_of())]
    assert sizes(under_way) == [1] * UNDER_WAY
    assert [put(batches, call_of()) for _ in range(3)] == [[]] * 3
    (gathered,) = batches.answered(under_way[0], answer_to(under_way[0]))
    assert sizes([gathered]) == [3]
    assert batches.answered(gathered, answer_to(gathered)) == []
    assert sizes(put(batches, call_of())) == [1]


def test_a_full_message_goes_whatever_is_under_way() -> None:
    batches = Batches(4)
    sent = [sizes(put(batches, call_of())) for _ in range(UNDER_WAY + 8)]
    assert sent == [[1]] * UNDER_WAY + [[], [], [], [4]] * 2


def test_photos_of_a_call_are_not_torn_apart() -> None:
    batches = Batches(4)
    for _ in range(UNDER_WAY):
        put(batches, call_of())
    assert put(batches, call_of(3)) == []
    assert sizes(put(batches, call_of(3))) == [1]  # the second waits
    assert sizes(put(batches, call_of(9))) == [1, 1]


def test_large_photos_travel_alone() -> None:
    batches = Batches(8)
    for _ in range(UNDER_WAY):
        put(batches, call_of())
    assert sizes(put(batches, call_of(size=MOST_BYTES))) == [1]
    half = MOST_BYTES // 2
    assert put(batches, call_of(size=half)) == []
    assert sizes(put(batches, call_of(size=half + 1))) == [1]  # together they are too large
    assert sizes(put(batches, call_of(size=half - 1))) == [2]


def test_calls_that_ask_for_other_things_share_nothing() -> None:
    batches = Batches(8)
    others = [
        *(Asked("n", "", 1, False, ""), Asked("m", 2, 1, False, ""), Asked("m", "", 2, False, "")),
        *(Asked("m", "", 1, True, ""), Asked("m", "", 1, False, "user")),
    ]
    for _ in range(UNDER_WAY + 1):
        put(batches, call_of())
    for asked in others:
        assert sizes(put(batches, call_of(asked=asked))) == [1]
    assert sizes(put(batches, call_of(patience=1))) == [1]


def test_who_waits_no_more_is_not_sent_and_ends_what_nobody_waits_for() -> None:
    batches, ended = Batches(2), []
    for _ in range(UNDER_WAY):
        put(batches, call_of())
    first, second, third = call_of(), call_of(), call_of()
    assert put(batches, first) == [] and batches.leave(first) is None
    assert put(batches, second) == []
    (both,) = put(batches, third)
    assert both.calls == [second, third]
    both.cancel = lambda: ended.append(both)
    second.answer.cancel()
    assert batches.leave(second) is None
    third.answer.cancel()
    assert batches.leave(third) is both.cancel


def test_nothing_is_kept_of_calls_that_have_ended() -> None:
    batches = Batches(2)
    sent = [batch for _ in range(7) for batch in put(batches, call_of())]
    while sent:
        batch = sent.pop()
        sent += batches.failed(batch, Unavailable("gone"))
    assert not batches._lines and not batches._under_way
    waiting = [call_of() for _ in range(UNDER_WAY + 1)]
    for call in waiting:
        put(batches, call)
    batches.leave(waiting[-1])
    assert not batches._lines


def test_photos_are_let_go_of_with_their_call_and_not_only_by_the_garbage_collector() -> None:
    gc.disable()
    try:
        for end in (
            lambda batches, batch: batches.answered(batch, answer_to(batch)),
            lambda batches, batch: batches.failed(batch, Unavailable("gone")),
        ):
            batches, call = Batches(2), call_of()
            (batch,) = put(batches, call)
            end(batches, batch)
            kept = weakref.ref(call)
            del call, batch
            assert kept() is None
    finally:
        gc.enable()


def test_each_caller_has_an_error_of_its_own() -> None:
    """They would share one traceback."""
    calls = [call_of(), call_of()]
    Batches(2).failed(Batch((ASKED, 0), calls), Overloaded("full", retry_after_s=3.0))
    errors = [call.answer.exception() for call in calls]
    assert errors[0] is not errors[1]
    assert all(isinstance(e, Overloaded) and e.retry_after_s == 3.0 for e in errors)


class Held(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answers each photo with its own bytes as its label, once `gate` is open; `messages`: the
    photos of each that came."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.messages: list[list[bytes]] = []
        self.cancelled = 0
        self.refuse: grpc.StatusCode | None = None

    async def Classify(self, request, context):  # noqa: N802 - the name of the method in the proto
        self.messages.append(list(request.images))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refuse is not None:
            await context.abort(self.refuse, "as scripted")
        labels = [pb.Classification(labels=[pb.Label(name=p.decode())]) for p in request.images]
        results = [pb.ImageResult(classification=label) for label in labels]
        return pb.ClassifyResponse(model=request.model, results=results)


@dataclass
class Caller:
    """Asks with a client of either kind, without waiting."""

    client: AsyncClient | Client
    threads: ThreadPoolExecutor

    def ask(self, *photos: bytes, model: str = "m", **how) -> "asyncio.Future[Response]":
        client = self.client
        if isinstance(client, AsyncClient):
            return asyncio.ensure_future(client.classify(photos, model=model, **how))
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(
            self.threads, lambda: client.classify(photos, model=model, **how)
        )

    async def streamed(self, photos: list[bytes], **how) -> list[StreamedResult]:
        """In the order of the photos."""
        client = self.client
        if isinstance(client, AsyncClient):
            answers = [answer async for answer in client.stream(photos, **how)]
        else:
            answers = await asyncio.to_thread(lambda: list(client.stream(photos, **how)))
        return sorted(answers, key=lambda answer: answer.index)

    def waiting(self) -> int:
        """Calls that are in no message yet."""
        return sum(len(line) for line in self.client._together._batches._lines.values())

    async def close(self) -> None:
        if isinstance(self.client, AsyncClient):
            await self.client.close()
        else:
            self.client.close()


@asynccontextmanager
async def calling(kind: type, address: str, **how) -> AsyncIterator[Caller]:
    with ThreadPoolExecutor(32) as threads:
        caller = Caller(kind(address, **how), threads)
        try:
            yield caller
        finally:
            await caller.close()


@asynccontextmanager
async def holding(
    kind: type, max_batch: int = 4, addresses: int = 1
) -> AsyncIterator[tuple[Caller, Held]]:
    held, server = Held(), grpc.aio.server()
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(held, server)
    ports = [server.add_insecure_port("127.0.0.1:0") for _ in range(addresses)]
    await server.start()
    try:
        address = ",".join(f"127.0.0.1:{port}" for port in ports)
        async with calling(kind, address, max_batch=max_batch) as caller:
            yield caller, held
    finally:
        await server.stop(0)


async def under_way(
    caller: Caller, held: Held, messages: int = UNDER_WAY, **how
) -> "list[asyncio.Future[Response]]":
    """Calls one by one, each a message: b"a", b"b" ..."""
    calls = []
    for letter in b"abcdefgh"[:messages]:
        calls.append(caller.ask(bytes([letter]), **how))
        await until(lambda: len(held.messages) == len(calls))
    return calls


@KINDS
async def test_calls_at_once_share_messages_and_each_has_its_own_answer(kind: type) -> None:
    async with holding(kind) as (c, held):
        first = await under_way(c, held)
        more = [c.ask(b"c"), c.ask(b"d", b"e")]
        await until(lambda: c.waiting() == 2)
        assert len(held.messages) == UNDER_WAY
        held.gate.set()
        answers = await asyncio.gather(*first, *more)
    names = [[result.label.name for result in answer.results] for answer in answers]
    assert names == [["a"], ["b"], ["c"], ["d", "e"]]
    assert sorted(map(len, held.messages)) == [1, 1, 3]


@KINDS
async def test_of_several_servers_each_has_messages_under_way(kind: type) -> None:
    async with holding(kind, addresses=3) as (c, held):
        calls = await under_way(c, held, 3 * UNDER_WAY)
        calls.append(c.ask(b"z"))
        await until(lambda: c.waiting() == 1)
        held.gate.set()
        await asyncio.gather(*calls)


async def test_tasks_that_ask_in_the_same_moment_share_the_first_message_too() -> None:
    async with holding(AsyncClient) as (c, held):
        held.gate.set()
        await asyncio.gather(*[c.ask(letter) for letter in (b"a", b"b", b"c")])
    assert held.messages == [[b"a", b"b", b"c"]]


@KINDS
async def test_by_default_each_call_is_a_message(kind: type) -> None:
    async with holding(kind, max_batch=1) as (c, held):
        calls = [c.ask(b"a") for _ in range(6)]
        await until(lambda: len(held.messages) == 6)
        held.gate.set()
        await asyncio.gather(*calls)


@KINDS
async def test_one_that_waits_no_longer_leaves_the_others_their_answers(kind: type) -> None:
    async with holding(kind) as (c, held):
        first = await under_way(c, held, timeout_s=7.9)
        short, long = c.ask(b"c", timeout_s=4.0), c.ask(b"d", timeout_s=7.9)
        with pytest.raises(DeadlineExceeded, match=f"the server at {c.client.address} gave no"):
            await short
        held.gate.set()
        assert (await long).results[0].label.name == "d"
        await asyncio.gather(*first)
    assert [b"d"] in held.messages  # the other was never sent


@KINDS
async def test_who_is_soon_gone_shares_no_message_with_who_waits_long(kind: type) -> None:
    """The server would work on for those who have left."""
    async with holding(kind) as (c, held):
        calls = await under_way(c, held)  # 30 s
        calls.append(c.ask(b"c", timeout_s=20))
        await until(lambda: c.waiting() == 1)
        calls.append(c.ask(b"d", timeout_s=10))
        await until(lambda: held.messages[-1] == [b"d"])
        assert c.waiting() == 1
        held.gate.set()
        await asyncio.gather(*calls)


@KINDS
async def test_nobody_waits_long_for_answers_to_others(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that hangs beside one that answers, say."""
    async with holding(kind) as (c, held):
        calls = await under_way(c, held)
        calls.append(c.ask(b"c"))
        await until(lambda: c.waiting() == 1)
        monkeypatch.setattr("serving.together.LONGEST_IN_LINE_S", 0.1)
        calls.append(c.ask(b"d"))
        await until(lambda: sum(map(len, held.messages)) == UNDER_WAY + 2)
        held.gate.set()
        answers = await asyncio.gather(*calls)
    assert [answer.results[0].label.name for answer in answers] == ["a", "b", "c", "d"]
    assert held.messages == [[b"a"], [b"b"], [b"c", b"d"]]


async def test_a_message_that_nobody_waits_for_is_cancelled_at_the_server() -> None:
    async with holding(AsyncClient, max_batch=2) as (c, held):
        first = await under_way(c, held)
        pair = [c.ask(b"c"), c.ask(b"d")]
        waiting = c.ask(b"e")
        await until(lambda: len(held.messages) == UNDER_WAY + 1)
        pair[0].cancel()
        await asyncio.wait(pair[:1])
        assert held.cancelled == 0
        for call in (pair[1], *first):
            call.cancel()
        await until(lambda: held.cancelled == 3)
        held.gate.set()
        assert (await waiting).results[0].label.name == "e"


async def test_a_call_that_is_cancelled_as_it_is_sent_does_not_count_as_under_way() -> None:
    """The next calls would wait for answers that never come."""
    async with holding(AsyncClient) as (c, held):
        held.gate.set()
        for _ in range(UNDER_WAY):
            call = c.ask(b"a")
            await asyncio.sleep(0)  # it has asked, and is sent with what asks in this moment
            call.cancel()
            await asyncio.wait([call])
        assert (await c.ask(b"b", timeout_s=20)).results[0].label.name == "b"


async def test_callers_are_told_where_another_cancels_the_task_that_sends() -> None:
    async with holding(AsyncClient) as (c, held):
        calls = await under_way(c, held)
        for task in asyncio.all_tasks():
            if task.get_coro().__qualname__ == AsyncTogether._answer.__qualname__:
                task.cancel()
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, Unavailable) and "interrupted" in str(ended)
        assert not c.client._together._batches._under_way


def test_a_thread_that_is_interrupted_as_it_sends_leaves_nothing_under_way() -> None:
    def begin(request: pb.ClassifyRequest, within_s: float) -> None:
        raise KeyboardInterrupt

    batches = Batches(4)
    with pytest.raises(KeyboardInterrupt):
        Together("server:1", batches, begin, Unavailable).classify(ASKED, [b"a"], 1.0)
    assert not batches._under_way


@KINDS
async def test_what_is_refused_is_told_to_each(kind: type) -> None:
    async with holding(kind) as (c, held):
        calls = await under_way(c, held)
        calls += [c.ask(b"c"), c.ask(b"d")]
        await until(lambda: c.waiting() == 2)
        held.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED
        held.gate.set()
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, Overloaded) and "as scripted" in str(ended)
    assert len(held.messages) == 3


@KINDS
async def test_all_that_waits_is_told_that_the_client_was_closed(kind: type) -> None:
    async with holding(kind) as (c, held):
        calls = await under_way(c, held)
        calls += [c.ask(b"c"), c.ask(b"d")]
        await until(lambda: c.waiting() == 2)
        await c.close()
        for ended in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20):
            assert isinstance(ended, Unavailable) and "closed" in str(ended)
        with pytest.raises(Unavailable, match="the client is closed"):
            await c.ask(b"e")


@KINDS
@pytest.mark.parametrize("photos, said", [([], "holds no photos"), ([b"junk"], "not an image")])
async def test_a_call_that_is_wrong_harms_no_other(
    kind: type, photos: list[bytes], said: str, running: Running
) -> None:
    held = HeldModel(running.server)
    async with calling(kind, running.address, max_batch=8) as c:
        calls = []
        for seed in range(UNDER_WAY):
            calls.append(c.ask(jpeg(seed=seed), model="pets"))
            await held.admitted(len(calls))
        calls.append(c.ask(jpeg(seed=5), model="pets"))
        bad = c.ask(*photos, model="pets")
        await until(lambda: bad.done() or c.waiting() == 2)
        held.release()
        with pytest.raises(InvalidRequest, match=said):
            await bad
        assert [(await call).results[0].error for call in calls] == [None] * 3


@KINDS
async def test_answers_are_those_of_each_call_alone(kind: type, tmp_path: Path) -> None:
    """Also where a server takes fewer photos in a call than the client puts into a message."""
    build_version(tmp_path, "pets")
    photos = [jpeg(seed=seed) for seed in range(24)]
    async with running_server(tmp_path, max_photos=2) as running:
        async with AsyncClient(running.address) as single:
            alone = [await single.classify([photo], model="pets", top_k=2) for photo in photos]
        async with calling(kind, running.address, max_batch=8) as c:
            calls = [c.ask(photo, model="pets", top_k=2) for photo in photos]
            together = await asyncio.gather(*calls)
            streamed = await c.streamed([*photos, b"junk"], model="pets", top_k=2)
    assert [answer.index for answer in streamed] == list(range(25))
    assert "not an image" in streamed[-1].result.error and streamed[-1].response is None
    together += [answer.response for answer in streamed[:-1]]
    for one, other in zip(alone * 2, together, strict=True):
        (result,) = other.results
        labels, others = one.results[0].labels, result.labels
        assert [label.name for label in labels] == [label.name for label in others]
        assert labels[0].probability == pytest.approx(others[0].probability, abs=1e-6)


@KINDS
def test_what_can_not_be_is_refused_at_once(kind: type) -> None:
    with pytest.raises(InvalidRequest, match="max_batch must be 1 or more, got 0"):
        kind("localhost:1", max_batch=0)
    with pytest.raises(InvalidRequest, match="give one of the two"):
        kind("localhost:1", max_batch=2, hedge_after_s=0.1)


def test_a_forked_process_shares_messages_of_its_own(server: ServerProcess) -> None:
    program = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from serving.client import Client

def ask(client):
    photo = Image.new("RGB", (32, 32))
    with ThreadPoolExecutor(9) as threads:
        calls = [threads.submit(client.classify, [photo], model="pets") for _ in range(9)]
    print(sum(call.result().version for call in calls), flush=True)

client = Client(sys.argv[1], max_batch=4)
ask(client)
if not os.fork():
    ask(client)
    client.close()
    os._exit(0)
assert os.wait()[1] == 0
ask(client)
"""
    done = run_python("-c", program, server.address)
    assert (done.returncode, done.stdout) == (0, "9\n9\n9\n"), done.stderr

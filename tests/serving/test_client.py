"""Both clients against a server in a process of its own."""

import asyncio
import io
import math
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from serving.client import AsyncClient, Client, Tls
from serving.client_messages import encoded
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from tests.commands import run_python
from tests.conftest import Running, ServerProcess, start_server
from tests.photos import drawing, encode, jpeg, noise, slow_png
from tests.ports import free_port
from tests.serving.held_model import HeldModel
from tests.tiny import build_version, logits_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("client")
    build_version(folder / "models", "pets")
    flags = ("--max-queue", "16", "--max-photos", "16", "--max-photo-mib", "1")
    flags += ("--decode-threads", "1")  # slow photos are slow on any machine
    process = start_server(folder / "models", folder, *flags)
    yield process
    status, _, err = process.stop()
    assert status == 0 and "Traceback" not in err, err


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def test_paths_bytes_and_pictures_are_photos(client: Client, tmp_path: Path) -> None:
    picture = noise(32)
    path = tmp_path / "a.png"
    picture.save(path)
    grey = Image.fromarray(np.full((32, 32), 90, np.uint8))
    photos = [path, str(path), path.read_bytes(), picture, grey]
    response = client.classify(photos, model="pets", top_k=2)
    assert (response.model, response.version) == ("pets", 1)
    first = response.results[0]
    assert all(result == first for result in response.results[1:4])
    assert first.label.index == logits_of(np.asarray(picture)[None])[0].argmax()
    assert first.label.name == ("cat", "dog")[first.label.index]
    assert response.timings.total_ms > 0


def test_a_picture_of_pillow_is_seen_as_its_file_is(client: Client, tmp_path: Path) -> None:
    """Upright, and whatever its mode."""
    lying, inks = tmp_path / "lying.jpg", tmp_path / "inks.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    drawing(48, 32).save(lying, exif=exif)
    drawing(32, 32, seed=1).convert("CMYK").save(inks)
    photos = [lying, Image.open(lying), inks, Image.open(inks)]
    spec = Preprocessing(size=32, interpolation="bilinear")
    seen = [preprocess(encoded(photo), spec) for photo in photos]
    assert (seen[0] == seen[1]).all() and (seen[2] == seen[3]).all()
    results = client.classify(photos, model="pets").results
    assert results[0] == results[1] and results[2] == results[3]


def test_what_no_message_can_hold_is_told(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="no message can hold more than"):
        client.classify([bytes(2**31)], model="pets")


@pytest.mark.parametrize(
    "photo",
    [
        *(b"bytes", bytearray(b"b"), memoryview(b"b"), io.BytesIO(b"two\nlines")),
        *("cat.jpg", Path("cat.jpg"), noise(8)),
    ],
)
def test_a_single_photo_goes_in_a_list(client: Client, photo: object) -> None:
    for ask in (client.classify, lambda *a, **k: list(client.stream(*a, **k))):
        with pytest.raises(TypeError, match=r"a single one goes in a list: \[photo\]"):
            ask(photo, model="pets")


@pytest.mark.parametrize(
    "photo", [bytearray(b"b"), io.BytesIO(b"b"), np.zeros((8, 8, 3), np.uint8), None, 3]
)
def test_what_is_no_photo_is_told(client: Client, photo: object) -> None:
    for ask in (client.classify, lambda *a, **k: list(client.stream(*a, **k))):
        with pytest.raises(TypeError, match=f"a Pillow image, got {type(photo).__name__}"):
            ask([photo], model="pets")


def test_a_name_that_no_message_can_hold_is_told(client: Client) -> None:
    """As a caller of the caller may give it, in JSON."""
    for ask in (
        lambda: client.classify([jpeg()], model="\ud800"),
        lambda: client.classify([jpeg()], model="pets", routing_key="\ud800"),
        lambda: next(client.stream([jpeg()], model="\ud800")),
        lambda: client.get_model("pets", "\ud800"),
        lambda: Client("\ud800:5"),
        lambda: Tls(server_name="\ud800"),
    ):
        with pytest.raises(InvalidRequest, match=r"'\\ud800.*' is not UTF-8"):
            ask()


def test_a_routing_key_that_is_no_text_is_told(client: Client) -> None:
    for ask in (client.classify, lambda *a, **k: list(client.stream(*a, **k))):
        with pytest.raises(TypeError, match="routing_key must be a string, got 17"):
            ask([jpeg()], model="pets", routing_key=17)


def test_photos_that_cannot_be_read_are_errors_of_their_own(client: Client) -> None:
    """Whatever Python and Pillow raise for them."""
    cut, closed = Image.open(io.BytesIO(jpeg()[:-100])), noise(8)
    closed.close()
    bad = [Image.new("RGB", (0, 0)), "zero\0byte.jpg", "\ud800.jpg", closed, cut]
    answers = {a.index: a.result for a in client.stream([*bad, jpeg()], model="pets")}
    assert [answers[i].error is None for i in range(6)] == [False] * 5 + [True]
    for photo in bad:
        with pytest.raises(OSError):
            client.classify([photo], model="pets")


@pytest.mark.parametrize("timeout_s", [1e10, 1e300, math.inf])
async def test_a_timeout_may_be_endless(server: ServerProcess, timeout_s: float) -> None:
    with Client(server.address, timeout_s=timeout_s) as client:
        assert client.classify([jpeg()], model="pets").version == 1
        assert len(list(client.stream([jpeg()], model="pets"))) == 1
    async with AsyncClient(server.address, timeout_s=timeout_s) as other:
        assert (await other.classify([jpeg()], model="pets")).version == 1
        assert len([answer async for answer in other.stream([jpeg()], model="pets")]) == 1


@pytest.mark.parametrize("timeout_s", [-1.0, math.nan])
async def test_a_timeout_of_less_than_none_is_over(server: ServerProcess, timeout_s: float) -> None:
    with Client(server.address) as client, pytest.raises(DeadlineExceeded, match="no answer"):
        list(client.stream([slow_png()], model="pets", timeout_s=timeout_s))
    async with AsyncClient(server.address) as other:
        with pytest.raises(DeadlineExceeded, match="no answer"):
            async for _ in other.stream([slow_png()], model="pets", timeout_s=timeout_s):
                pass


def test_no_answer_in_time_names_the_server(client: Client, server: ServerProcess) -> None:
    with pytest.raises(DeadlineExceeded, match=f"{server.address} gave no answer in the time"):
        client.classify([slow_png()] * 4, model="pets", timeout_s=0.05)


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_none_or_empty(server: ServerProcess, token: str | None) -> None:
    with Client(server.address, token=token) as client:
        assert client.list_models()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "HOST:PORT"),
        ("localhost:99999", "99999"),
        ("http://localhost:50051", "without http://"),
        ("https://localhost", "without http://"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Client(address)


def test_errors_have_their_exceptions(client: Client) -> None:
    for photos, options, kind in (
        ([jpeg()], {"model": "cars"}, NotFound),
        ([jpeg()], {"model": "pets", "version": 9}, NotFound),
        ([], {"model": "pets"}, InvalidRequest),
        ([b"junk"], {"model": "pets"}, InvalidRequest),
        ([jpeg()], {"model": "pets", "top_k": 3}, InvalidRequest),
        ([jpeg()], {"model": "pets", "top_k": 2**40}, InvalidRequest),
        ([b"x" * 2**20] * 66, {"model": "pets"}, InvalidRequest),
        ([slow_png()] * 4, {"model": "pets", "timeout_s": 0.02}, DeadlineExceeded),
    ):
        with pytest.raises(kind):
            client.classify(photos, **options)
    with pytest.raises(FileNotFoundError):
        client.classify(["/nowhere.jpg"], model="pets")
    assert client.classify([jpeg()], model="pets").results[0].error is None


def test_a_bad_photo_among_good_ones(client: Client) -> None:
    good, bad = client.classify([jpeg(), b"junk"], model="pets").results
    assert good.error is None and good.labels
    assert "not an image" in bad.error and bad.labels == ()
    with pytest.raises(ValueError, match="not an image"):
        _ = bad.label


def test_models_are_described(client: Client) -> None:
    (model,) = client.list_models()
    assert (model.name, model.versions, model.default_version) == ("pets", (1,), 1)
    description = client.get_model("pets")
    assert description.labels == ("cat", "dog") and description.input_size == 32
    assert description.robustness is None
    with pytest.raises(NotFound):
        client.get_model("cars")


def photos_for_a_stream(tmp_path: Path) -> tuple[list[object], dict[int, str]]:
    """100 photos, of which some are bad in a way of their own: index -> words of the error."""
    photos: list[object] = [jpeg(seed=seed) for seed in range(100)]
    bad = {
        7: (b"", "empty"),
        20: (tmp_path / "nowhere.jpg", "can't be read"),
        50: (jpeg()[:-300], "truncated"),
        51: (b"x" * (2**20 + 1), "at most 1,048,576"),
        52: (b"x" * (64 * 2**20 + 1), "can be streamed"),
        99: (encode(drawing(), "TIFF"), "not an image"),
    }
    for index, (photo, _) in bad.items():
        photos[index] = photo
    return photos, {index: words for index, (_, words) in bad.items()}


def test_a_stream_answers_each_photo_once(client: Client, tmp_path: Path) -> None:
    photos, bad = photos_for_a_stream(tmp_path)
    answers = {a.index: a for a in client.stream(photos, model="pets", in_flight=5)}
    assert sorted(answers) == list(range(100))
    for index, answer in answers.items():
        if index in bad:
            assert bad[index] in answer.result.error and answer.response is None
        else:
            assert answer.result.error is None and answer.response.version == 1
            assert answer.latency_s > 0


async def test_an_async_stream_answers_each_photo_once(
    server: ServerProcess, tmp_path: Path
) -> None:
    photos, bad = photos_for_a_stream(tmp_path)
    async with AsyncClient(server.address) as client:
        stream = client.stream(photos, model="pets", in_flight=5)
        answers = {a.index: a async for a in stream}
    assert sorted(answers) == list(range(100))
    for index, answer in answers.items():
        if index in bad:
            assert bad[index] in answer.result.error
        else:
            assert answer.result.error is None


async def test_a_file_that_is_slow_to_read_holds_up_no_other_call(
    server: ServerProcess, tmp_path: Path
) -> None:
    pipe = tmp_path / "slow.jpg"
    os.mkfifo(pipe)
    given_up = threading.Timer(20, lambda: pipe.write_bytes(b""))  # a loop that waits is let go
    given_up.start()
    async with AsyncClient(server.address) as client:
        slow = asyncio.create_task(client.classify([pipe], model="pets"))
        assert (await client.classify([jpeg()], model="pets")).version == 1
        assert not slow.done()
        given_up.cancel()
        await asyncio.to_thread(pipe.write_bytes, jpeg())
        assert (await slow).results[0].error is None


def test_a_stream_reads_no_further_than_is_in_flight(client: Client) -> None:
    read = 0

    def photos() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield jpeg()

    stream = client.stream(photos(), model="pets", in_flight=4)
    for taken in range(1, 20):
        next(stream)
        # Those answered, those on their way, and the one that the sender holds in its hand.
        assert read <= taken + 4 + 1
    before = threading.active_count()
    stream.close()
    assert threading.active_count() <= before


async def test_a_stream_with_no_place_in_flight_is_refused(
    client: Client, server: ServerProcess
) -> None:
    for in_flight in (0, -1, 1.5):
        with pytest.raises(InvalidRequest, match=f"must be 1 or more photos, got {in_flight}"):
            next(client.stream([jpeg()], model="pets", in_flight=in_flight))
        async with AsyncClient(server.address) as other:
            with pytest.raises(InvalidRequest, match="in_flight must be 1 or more"):
                await anext(other.stream([jpeg()], model="pets", in_flight=in_flight))
    assert len(list(client.stream([jpeg()] * 3, model="pets", in_flight=1))) == 3


@pytest.mark.parametrize("max_batch", [1, 4])
async def test_what_no_message_can_ask_for_is_refused_at_once(
    server: ServerProcess, max_batch: int
) -> None:
    how, refused = {"model": "pets", "top_k": -1}, pytest.raises(InvalidRequest, match="top_k must")
    with Client(server.address, max_batch=max_batch) as client:
        with refused:
            client.classify([jpeg()], **how)
        with refused:
            next(client.stream([jpeg()] * 20, **how))
    async with AsyncClient(server.address, max_batch=max_batch) as other:
        with refused:
            await other.classify([jpeg()], **how)
        with refused:
            await anext(other.stream([jpeg()] * 20, timeout_s=5, **how))


def test_a_stream_for_an_unknown_model_raises(client: Client) -> None:
    with pytest.raises(NotFound, match="models here: pets"):
        list(client.stream([jpeg()] * 50, model="cars"))


def test_an_error_of_the_callers_own_iterable_is_raised(client: Client) -> None:
    def photos() -> Iterator[bytes]:
        yield jpeg()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.stream(photos(), model="pets"))


def test_so_is_what_is_no_ordinary_exception(client: Client) -> None:
    def photos() -> Iterator[bytes]:
        yield jpeg()
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(client.stream(photos(), model="pets"))


async def test_an_async_stream_passes_errors_on(server: ServerProcess) -> None:
    def photos() -> Iterator[bytes]:
        yield jpeg()
        raise ZeroDivisionError

    async with AsyncClient(server.address) as client:
        with pytest.raises(NotFound):
            async for _ in client.stream([jpeg()] * 50, model="cars"):
                pass
        with pytest.raises(ZeroDivisionError):
            async for _ in client.stream(photos(), model="pets"):
                pass
        async for _ in client.stream([jpeg()] * 50, model="pets"):
            break
        assert (await client.classify([jpeg()], model="pets")).version == 1


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, SystemExit])
async def test_so_does_it_what_is_no_ordinary_exception(
    server: ServerProcess, kind: type[BaseException]
) -> None:
    """Such as what the result of a cancelled task raises, within an iterable that asks for it."""

    def photos() -> Iterator[bytes]:
        yield jpeg()
        raise kind

    async with AsyncClient(server.address) as client, asyncio.timeout(20) as within:
        with pytest.raises(kind):
            async for _ in client.stream(photos(), model="pets"):
                pass
    assert not within.expired()


async def test_a_task_that_takes_a_stream_can_be_cancelled_at_any_moment(
    server: ServerProcess,
) -> None:
    async with AsyncClient(server.address) as client:
        for answers in range(1, 21):
            enough = asyncio.Event()

            async def take(until: int, enough: asyncio.Event) -> None:
                taken = 0
                async for _ in client.stream((jpeg() for _ in range(10_000)), model="pets"):
                    taken += 1
                    if taken == until:
                        enough.set()

            task = asyncio.create_task(take(answers, enough))
            async with asyncio.timeout(60):
                await enough.wait()
            task.cancel()
            await asyncio.wait([task], timeout=20)
            assert task.cancelled()


def test_a_stream_waits_no_longer_than_its_timeout(client: Client) -> None:
    with pytest.raises(DeadlineExceeded, match="no answer came for 0.01 s"):
        list(client.stream([slow_png()], model="pets", timeout_s=0.01))


async def test_calls_beyond_the_queue_are_overloaded(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        await client.list_models()
        calls = [client.classify([slow_png()] * 4, model="pets") for _ in range(6)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [r for r in results if isinstance(r, Overloaded)]
        answered = [r for r in results if not isinstance(r, BaseException)]
        assert len(refused) == 2 and len(answered) == 4
        assert (await client.classify([jpeg()], model="pets")).version == 1


async def test_async_calls_and_errors(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        responses = await asyncio.gather(
            *[client.classify([jpeg(seed=seed)], model="pets") for seed in range(16)]
        )
        assert all(response.results[0].labels for response in responses)
        assert (await client.get_model("pets", 1)).version == 1
        with pytest.raises(InvalidRequest):
            await client.classify([b"junk"], model="pets")


async def test_calls_of_a_client_that_is_closed_are_not_taken_for_cancelled(
    running: Running,
) -> None:
    held = HeldModel(running.server)
    client, hedging = AsyncClient(running.address), AsyncClient(running.address, hedge_after_s=0.0)

    async def take() -> None:
        async for _ in client.stream([jpeg()], model="pets"):
            pass

    calls = [
        asyncio.create_task(call)
        for call in (
            client.classify([jpeg()], model="pets"),
            hedging.classify([jpeg()], model="pets"),
            take(),
        )
    ]
    await held.admitted(4)
    await client.close()
    await hedging.close()
    held.release()
    for ended in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20):
        assert isinstance(ended, Unavailable) and "the client was closed" in str(ended)


async def test_a_client_that_is_closed_says_so(server: ServerProcess) -> None:
    client = Client(server.address)
    with client:
        assert client.list_models()
    async with AsyncClient(server.address) as other:
        assert await other.list_models()
    client.close()
    await other.close()
    hedging = Client(server.address, hedge_after_s=1.0)
    hedging.close()
    for closed in (client, hedging):
        with pytest.raises(Unavailable, match="the client is closed"):
            closed.classify([jpeg()], model="pets")
    with pytest.raises(Unavailable, match="the client is closed"):
        list(client.stream([jpeg()], model="pets"))
    with pytest.raises(Unavailable, match="the client is closed"):
        await other.classify([jpeg()], model="pets")
    with pytest.raises(Unavailable, match="the client is closed"):
        async for _ in other.stream([jpeg()], model="pets"):
            pass


async def test_calls_of_threads_whose_client_is_closed_say_so(running: Running) -> None:
    held = HeldModel(running.server)
    client = Client(running.address)

    def take() -> list[object]:
        return list(client.stream([jpeg()], model="pets"))

    calls = [
        asyncio.create_task(call)
        for call in (
            asyncio.to_thread(client.classify, [jpeg()], model="pets"),
            asyncio.to_thread(take),
        )
    ]
    await held.admitted(2)
    client.close()
    held.release()
    for ended in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20):
        assert isinstance(ended, Unavailable) and "closed" in str(ended)


class ClosedAsACallBegins(Client):
    """By another thread, just before gRPC has the call."""

    @property
    def _stub(self) -> Any:
        stub = super()._stub
        self.close()
        return stub


@pytest.mark.parametrize("kind", [{}, {"max_batch": 2}, {"hedge_after_s": 0.0}], ids=str)
def test_a_client_that_is_closed_as_a_call_begins_says_so(
    server: ServerProcess, kind: dict[str, Any]
) -> None:
    with pytest.raises(Unavailable, match="the client is closed"):
        ClosedAsACallBegins(server.address, **kind).classify([jpeg()], model="pets")
    with pytest.raises(Unavailable, match="the client is closed"):
        list(ClosedAsACallBegins(server.address, **kind).stream([jpeg()], model="pets"))


async def test_an_async_client_that_is_closed_as_a_second_attempt_begins_says_so(
    server: ServerProcess,
) -> None:
    for steps in range(1, 8):  # of the event loop: one of them is that moment
        client = AsyncClient(server.address, hedge_after_s=0.0)
        await client.list_models()
        call = asyncio.create_task(client.classify([jpeg()], model="pets"))
        for _ in range(steps):
            await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Unavailable, match="the client was closed"):
            await call


def test_an_async_client_belongs_to_the_loop_that_first_uses_it(server: ServerProcess) -> None:
    """As of a service that makes it where its modules are imported, before there is a loop."""
    client = AsyncClient(server.address)

    async def ask() -> int:
        return (await client.classify([jpeg()], model="pets")).version

    async def ask_and_close() -> int:
        try:
            return await ask()
        finally:
            await client.close()

    with asyncio.Runner() as runner:
        assert runner.run(ask()) == 1
        with pytest.raises(InvalidRequest, match="event loop that first used it"):
            asyncio.run(ask())
        assert runner.run(ask_and_close()) == 1


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_not_pickled(kind: type[Client | AsyncClient]) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} can't be pickled.* in each process"):
        pickle.dumps(kind("127.0.0.1:1"))


def test_a_forked_process_has_a_connection_of_its_own(server: ServerProcess) -> None:
    """As the workers of gunicorn --preload, celery and multiprocessing have of a client that their
    parent made and used."""
    program = """
import os, sys
from PIL import Image
from serving.client import Client

def ask():
    print(client.classify([Image.new("RGB", (32, 32))], model="pets").version, flush=True)

client = Client(sys.argv[1])
ask()
inherited = client._channel
if not os.fork():
    ask()
    client.close()
    os._exit(3 if client._channel is inherited else 0)
assert os.wait()[1] == 0
ask()
"""
    done = run_python("-c", program, server.address)
    assert (done.returncode, done.stdout) == (0, "1\n1\n1\n"), done.stderr


def test_a_program_ends_though_a_stream_is_open(server: ServerProcess) -> None:
    program = """
import sys
from PIL import Image
from serving.client import Client

client = Client(sys.argv[1])
answers = client.stream([Image.new("RGB", (32, 32))] * 100, model="pets", in_flight=4)
print(next(answers).index >= 0)
"""
    done = run_python("-c", program, server.address, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


async def test_nobody_there_is_unavailable() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address) as client:
        with pytest.raises(Unavailable, match=f"the server at {address} does not answer"):
            client.list_models()
        with pytest.raises(Unavailable):
            list(client.stream([jpeg()], model="pets"))
    async with AsyncClient(address) as client:
        with pytest.raises(Unavailable):
            await client.list_models()
        with pytest.raises(Unavailable):
            async for _ in client.stream([jpeg()] * 3, model="pets"):
                pass

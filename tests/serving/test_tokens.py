"""Who may call, and how much: tokens and their rates, over a real server."""

import asyncio
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.client import AsyncClient, Client
from serving.errors import InvalidRequest, Overloaded, Unauthenticated
from serving.rate_limit import Bucket
from serving.tokens import Tokens, main, read_tokens
from tests.commands import run_python
from tests.conftest import ROOT, running_server
from tests.photos import jpeg
from tests.serving.held_model import HeldModel, until


def entry(name: str, token: str, *lines: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return "\n".join((f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"', *lines, ""))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(
        entry("shop", "secret") + entry("slow", "calm", "photos_per_s = 2", "burst = 3")
    )
    return path


async def test_only_a_known_token_may_call(models: Path, file: Path) -> None:
    async with running_server(models, tokens=str(file)) as running:
        async with AsyncClient(running.address, token="secret") as client:
            await client.classify([jpeg()] * 20, model="pets")
            await client.list_models()
            found = [result async for result in client.stream([jpeg()] * 3, model="pets")]
            assert len(found) == 3
        for token in ("", "wrong", "secret2", "calm secret"):
            async with AsyncClient(running.address, token=token) as client:
                with pytest.raises(Unauthenticated):
                    await client.classify([jpeg()], model="pets")
                with pytest.raises(Unauthenticated):
                    await client.list_models()
                with pytest.raises(Unauthenticated):
                    _ = [result async for result in client.stream([jpeg()], model="pets")]


@pytest.mark.parametrize("token", ["secret\n", "sécret", "secret\0"])
def test_a_token_that_no_call_can_carry_is_told(token: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match="such as the newline at the end of a file"):
            kind("127.0.0.1:1", token=token)


def test_a_secret_with_a_newline_is_one_line_to_its_user(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    done = run_python(
        *("-m", "serving.classify", "photo.jpg", "--address", "127.0.0.1:1"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PAWPRINT_TOKEN": "secret\n"},
    )
    assert done.returncode == 2 and done.stderr.startswith("error: the token (PAWPRINT_TOKEN ")
    assert len(done.stderr.splitlines()) == 1


async def test_the_other_protocol_wants_it_too_and_health_does_not(
    models: Path, file: Path
) -> None:
    async with (
        running_server(models, tokens=str(file)) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        inference = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        live = grpc_service_pb2.ServerLiveRequest()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await inference.ServerLive(live)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer TOKEN" in raised.value.details()
        good = [("authorization", "bearer secret")]
        assert (await inference.ServerLive(live, metadata=good)).live
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())


async def test_a_token_has_its_rate_and_is_told_when_to_come_back(models: Path, file: Path) -> None:
    async with (
        running_server(models, tokens=str(file)) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        metadata = [("authorization", "Bearer calm")]
        three = pb.ClassifyRequest(model="pets", images=[jpeg()] * 3)
        forty = pb.ClassifyRequest(model="pets", images=[jpeg()] * 40)
        one = pb.ClassifyRequest(model="pets", images=[jpeg()])
        await stub.Classify(three, metadata=metadata)
        await stub.Classify(forty, metadata=metadata)  # for the little that came back: 20 s owed
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Classify(one, metadata=metadata)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "has had its 2 photos a second" in raised.value.details()
        details = dict(raised.value.trailing_metadata())["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(details)
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        wait_s = info.retry_delay.ToMilliseconds() / 1e3
        assert 0 < wait_s <= 20
        running.server._edge._tokens._buckets["slow"].at -= wait_s + 0.01  # it has passed
        await stub.Classify(one, metadata=metadata)
        async with AsyncClient(running.address, token="secret") as other:
            await other.classify([jpeg()] * 10, model="pets")  # another's rate is its own


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_stream_over_its_rate_has_all_its_answers(
    models: Path, file: Path, kind: type
) -> None:
    async with running_server(models, tokens=str(file)) as running:
        if kind is AsyncClient:
            async with AsyncClient(running.address, token="calm") as client:
                found = [one async for one in client.stream([jpeg()] * 8, model="pets")]
        else:
            with Client(running.address, token="calm") as blocking:
                answers = blocking.stream([jpeg()] * 8, model="pets")
                found = await asyncio.to_thread(list, answers)
    assert sorted(one.index for one in found) == list(range(8))
    assert all(one.result.labels for one in found)


@pytest.mark.parametrize("rate", ["1e-9", "1e-320"])
async def test_a_wait_that_no_message_can_hold_is_told_as_a_long_one(
    models: Path, tmp_path: Path, rate: str
) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(entry("rare", "secret", f"photos_per_s = {rate}", "burst = 1"))
    request = pb.ClassifyRequest(model="pets", images=[jpeg()] * 2)
    async with (
        running_server(models, tokens=str(file)) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        metadata = [("authorization", "Bearer secret")]
        await stub.Classify(request, metadata=metadata)
        code = stub.Classify(request, metadata=metadata).code()
        assert await code is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream = stub.ClassifyStream(metadata=metadata)
        await stream.write(pb.ClassifyStreamRequest(request=request))
        assert (await stream.read()).error.retry_after_ms == 2**31 - 1
        stream.cancel()


async def test_retries_of_grpc_come_when_the_server_says_and_only_if_in_time(
    models: Path, file: Path
) -> None:
    policy = {
        **{"maxAttempts": 2, "initialBackoff": "0.01s", "maxBackoff": "0.01s"},
        **{"backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]},
    }
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    async with (
        running_server(models, tokens=str(file)) as running,
        grpc.aio.insecure_channel(
            running.address, [("grpc.service_config", json.dumps(config))]
        ) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        edge = running.server._edge
        codes: list[grpc.StatusCode] = []
        edge._sinks = (*edge._sinks, lambda call: codes.append(call.code))

        def call(photos: int, timeout: float) -> grpc.aio.Call:
            request = pb.ClassifyRequest(model="pets", images=[jpeg()] * photos)
            metadata = [("authorization", "Bearer calm")]
            return stub.Classify(request, metadata=metadata, timeout=timeout)

        await call(3, 20)
        await call(2, 20)  # for the little that came back: 1 s owed
        codes.clear()
        await call(1, 20)
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK]
        await call(20, 20)
        codes.clear()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(1, 5)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # before its deadline
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_a_call_that_is_refused_costs_its_token_nothing(models: Path, file: Path) -> None:
    """Too many photos, a wrong top_k, a full queue: the burst of three is all there still."""
    settings = {"max_photos": 8, "max_batch": 8, "max_queue": 8}
    async with (
        running_server(models, tokens=str(file), **settings) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        other, calm = [("authorization", f"Bearer {token}") for token in ("secret", "calm")]

        def call(photos: int, metadata: tuple[str, str], **fields: int) -> grpc.aio.Call:
            request = pb.ClassifyRequest(model="pets", images=[jpeg()] * photos, **fields)
            return stub.Classify(request, metadata=[metadata])

        held = HeldModel(running.server)
        full = call(8, other)
        await held.admitted(8)
        for wrong, words in (
            (call(9, calm), "at most 8 are allowed"),
            (call(8, calm, top_k=9), "top_k must be"),
            *((call(8, calm), "queue is full") for _ in range(3)),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await wrong
        held.release()
        await full
        await call(8, calm)
        with pytest.raises(grpc.aio.AioRpcError, match="has had its 2 photos a second"):
            await call(1, calm)
        await held.admitted(0)


@asynccontextmanager
async def two_callers(
    models: Path, file: Path, **settings: int
) -> AsyncIterator[tuple[HeldModel, AsyncClient, AsyncClient]]:
    """A model that is held, and clients with a token each."""
    async with (
        running_server(models, tokens=str(file), **settings) as running,
        AsyncClient(running.address, token="secret") as one,
        AsyncClient(running.address, token="calm") as other,
    ):
        yield HeldModel(running.server), one, other


async def test_the_calls_of_one_token_share_a_turn(models: Path, file: Path) -> None:
    """Twenty calls of one wait; the single call of another is in the very next batch."""
    async with two_callers(models, file, max_batch=4, max_queue=64) as (held, many, one):
        calls = [asyncio.ensure_future(many.classify([jpeg()], model="pets"))]
        await held.running(1)
        calls += [asyncio.ensure_future(many.classify([jpeg()], model="pets")) for _ in range(20)]
        await held.waiting(20)
        single = asyncio.ensure_future(one.classify([jpeg(seed=9)], model="pets"))
        await held.waiting(21)
        held.release()
        await asyncio.gather(*calls, single)
    usual = held.pictures[0][0]
    others = [sum(not np.array_equal(one, usual) for one in batch) for batch in held.pictures]
    assert others[:2] == [0, 1] and sum(others) == 1


async def test_one_token_can_not_fill_the_queue(models: Path, file: Path) -> None:
    async with two_callers(models, file, max_photos=8, max_queue=16) as (held, many, one):
        calls = [many.classify([jpeg()], model="pets", timeout_s=20) for _ in range(40)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await until(lambda: sum(task.done() for task in tasks) == 32)  # refused
        single = asyncio.ensure_future(one.classify([jpeg()] * 4, model="pets"))
        await held.admitted(12)
        held.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert len((await single).results) == 4
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 32 and "0 of 16 places free for this caller" in str(refused[0])


async def test_tokens_over_an_open_network_are_warned_of(
    models: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(models, tokens=str(file)):
        assert "unencrypted" not in caplog.text
    async with running_server(models, tokens=str(file), host="0.0.0.0"):
        assert "tokens come over the network unencrypted" in caplog.text


def test_a_changed_rate_holds_for_open_streams_too_and_what_is_owed_stays(file: Path) -> None:
    tokens = Tokens(file)
    stream = tokens.identify("Bearer calm")  # 2 photos a second, 3 at once
    tokens.charge(stream, 30)
    file.write_text(entry("slow", "calm", "photos_per_s = 0.001", "burst = 3"))
    tokens._checked = -math.inf
    with pytest.raises(Overloaded, match="its 0.001 photos a second"):  # though nobody calls anew
        tokens.charge(stream, 1)
    call = tokens.identify("Bearer calm")
    assert call != stream
    with pytest.raises(Overloaded):
        tokens.charge(call, 1)


@pytest.mark.parametrize("left", ["", entry("shop", "its next secret")])
async def test_an_open_stream_ends_when_its_token_is_removed(
    models: Path, file: Path, left: str
) -> None:
    request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(model="pets", images=[jpeg()]))
    async with (
        running_server(models, tokens=str(file)) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        shop, slow = (
            stub.ClassifyStream(metadata=(("authorization", f"Bearer {token}"),))
            for token in ("secret", "calm")
        )
        for stream in (shop, slow):
            await stream.write(request)
            assert (await stream.read()).WhichOneof("outcome") == "response"
        file.write_text(left + entry("slow", "calm"))
        await asyncio.sleep(1.1)  # as long as the server relies on what it has read
        for stream in (shop, slow):
            await stream.write(request)
        assert (await slow.read()).WhichOneof("outcome") == "response"
        slow.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match="'shop' is no longer one") as refused:
            await shop.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_over_a_long_time_a_bucket_gives_its_rate() -> None:
    bucket, granted, now = Bucket(10.0, 20.0, 20.0, 0.0), 0, 0.0
    while now < 100:
        wait_s = bucket.take(7, now)
        granted += 0 if wait_s else 7
        now += wait_s or 0.001
    assert 10 * 100 <= granted <= 10 * 100 + 20 + 7
    assert bucket.take(7, 1e6) == 0 and bucket.left == 13  # never more than the burst


def test_the_last_of_a_burst_is_let_in_and_the_next_is_not() -> None:
    bucket = Bucket(2.0, 1.0, 1.0, 0.0)
    assert (bucket.take(1, 0.0), bucket.take(1, 0.0)) == (0, 1e-3)
    assert (bucket.take(1, 0.1), bucket.take(1, 0.1)) == (0, 0.4)


async def test_a_changed_file_is_read_again_and_a_broken_one_is_not(
    models: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(models, tokens=str(file)) as running:

        async def may(token: str) -> bool:
            async with AsyncClient(running.address, token=token) as client:
                try:
                    await client.list_models()
                except Unauthenticated:
                    return False
            return True

        assert await may("secret") and not await may("new")
        file.write_text(entry("new", "new"))
        deadline = time.monotonic() + 10
        while not await may("new"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert not await may("secret")
        part = file.with_suffix(".part")
        part.write_text("[[tokens]]\nname = 'x'\n")
        os.replace(part, file)

        def complained() -> bool:
            return "the tokens stay as they were" in caplog.text

        while not complained():
            assert await may("new") and time.monotonic() < deadline + 10
            await asyncio.sleep(0.1)
        await until(complained)
        assert await may("new")


def test_a_changed_file_that_can_not_be_read_now_is_read_later(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.tokens._CHECK_EVERY_S", 0.0)
    tokens = Tokens(file)
    file.write_text(entry("new", "new"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # no descriptor is free
    try:
        for _ in range(3):
            assert tokens.identify("Bearer secret").name == "shop"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caplog.text.count("the tokens stay as they were") == 1
    assert tokens.identify("Bearer new").name == "new"
    with pytest.raises(Unauthenticated):
        tokens.identify("Bearer secret")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold"),
        ("tokens = 3", "must hold"),
        ("tokens = [3]", "expected an object"),
        ("x = 1\n" + entry("a", "a"), "must hold"),
        ("[[tokens]]\nname = 'a'", "missing"),
        (entry("a", "a", "colour = 'red'"), "unknown"),
        (entry("a b", "a"), "name must be"),
        ("[[tokens]]\nname = 'a'\nsha256 = 'abc'", "64 lower-case hex digits"),
        (entry("a", "a", "photos_per_s = -1"), "must be more than 0"),
        (entry("a", "a", "photos_per_s = 2", "burst = 0"), "must be more than 0"),
        (entry("a", "a", "photos_per_s = 'fast'"), "expected float"),
        (entry("a", "a", f"photos_per_s = 1{400 * '0'}"), "too large"),
        ("x = " + 10_000 * "[", "recursion"),
        (entry("a", "a") + entry("a", "b"), "the same name"),
        (entry("a", "a") + entry("b", "a"), "the same sha256"),
        ("[[tokens", "can't be used"),
        (f"tokens = {'[' * 10_000}", "can't be used"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        read_tokens(path)


def test_a_file_may_begin_with_a_mark_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("shop", "secret"), encoding="utf-8-sig")
    assert [token.name for token in read_tokens(path)] == ["shop"]


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="can't be used"):
        Tokens(Path("/nowhere/tokens.toml"))


async def test_classify_says_where_its_token_stands(
    models: Path, file: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg())
    async with running_server(models, tokens=str(file)) as running:
        for token, words in (
            ("", "wants a token: authorization: Bearer TOKEN; set PAWPRINT_TOKEN"),
            ("wrong", "is not one that this server knows; it stands in PAWPRINT_TOKEN"),
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "serving.classify", str(photo)),
                *("--address", running.address),
                cwd=ROOT,
                env={**os.environ, "PAWPRINT_TOKEN": token},
                stderr=subprocess.PIPE,
            )
            _, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 2 and err.decode().endswith(f"{words}\n")


def test_a_token_has_no_limit_unless_it_is_given_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["shop"])
    token, entry = capsys.readouterr()
    path = tmp_path / "tokens.toml"
    path.write_text(entry)
    tokens = Tokens(path)
    for _ in range(3):
        tokens.charge(tokens.identify(f"Bearer {token}"), 10**9)


async def test_the_command_makes_a_token_that_works(tmp_path: Path) -> None:
    done = run_python("-m", "serving.tokens", "shop", "--photos-per-s", 5)
    path = tmp_path / "tokens.toml"
    path.write_text(done.stderr)
    tokens = Tokens(path)
    token = tokens.identify(f"Bearer {done.stdout.strip()}")
    assert (token.name, token.photos_per_s, token.burst) == ("shop", 5.0, 50.0)
    tokens.charge(token, 51)
    with pytest.raises(Overloaded) as raised:
        tokens.charge(token, 1)
    assert 0 < raised.value.retry_after_s < 1
    wrong = run_python("-m", "serving.tokens", "a b")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: name must be")

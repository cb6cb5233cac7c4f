"""Classify over a real socket: good calls, and every kind of bad one with its own status."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.client import AsyncClient
from serving.errors import Overloaded
from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from serving.repository import Repository
from serving.status import STATUS
from serving.turns import LOW_EVERY
from tests.conftest import Running, running_server
from tests.photos import black, drawing, encode, jpeg, noise, slow_png
from tests.serving.held_model import HeldModel
from tests.serving.test_preprocess import bomb
from tests.tiny import (
    FAMILIARITY_OF_TINY,
    build_version,
    familiarity_of,
    logits_of,
    softmax,
    tiny_model,
)

Code = grpc.StatusCode
MIB = 1024 * 1024


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[classifier_pb2_grpc.ClassifierServiceStub]:
    async with grpc.aio.insecure_channel(
        running.address, [("grpc.max_send_message_length", -1)]
    ) as channel:
        yield classifier_pb2_grpc.ClassifierServiceStub(channel)


def request(*photos: bytes, model: str = "pets", **fields: object) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=photos, **fields)


def expected(photo: bytes) -> np.ndarray:
    """Probabilities [2], by numpy."""
    pixels = preprocess(photo, Preprocessing(size=32, interpolation="bilinear"))
    return softmax(logits_of(pixels[None]))[0]


def check(result: pb.ImageResult, photo: bytes) -> None:
    assert result.WhichOneof("outcome") == "classification"
    probabilities = expected(photo)
    labels = result.classification.labels
    assert labels[0].index == probabilities.argmax()
    for label in labels:
        assert label.name == ("cat", "dog")[label.index]
        assert label.probability == pytest.approx(probabilities[label.index], abs=1e-4)


async def test_photos_are_answered_in_order(stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(20)]
    response = await stub.Classify(request(*photos, top_k=2))
    assert (response.model, response.version) == ("pets", 1)
    assert len(response.results) == 20
    for result, photo in zip(response.results, photos, strict=True):
        check(result, photo)
        assert len(result.classification.labels) == 2
        first, second = result.classification.labels
        assert first.probability >= second.probability
    timings = response.timings
    assert timings.decode_ms > 0 and timings.inference_ms > 0 and timings.queue_ms >= 0
    assert timings.total_ms >= max(timings.queue_ms, timings.inference_ms)


async def test_large_photos_among_small_ones_are_answered(stub) -> None:
    """Of those of more than 12 million pixels one is decoded at a time, and no thread waits."""
    large = [encode(drawing(3600, 3400, seed), "PNG") for seed in range(3)]
    photos = [jpeg(seed=9), *large, jpeg(seed=10)]
    calls = [stub.Classify(request(*photos[n:], *photos[:n], top_k=2)) for n in range(3)]
    for n, call in enumerate(calls):
        for result, photo in zip((await call).results, photos[n:] + photos[:n], strict=True):
            check(result, photo)


async def test_top_k_defaults_to_one(stub) -> None:
    response = await stub.Classify(request(jpeg()))
    assert len(response.results[0].classification.labels) == 1


async def test_batched_is_as_alone(running: Running, stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(12)]
    alone = [await stub.Classify(request(photo, top_k=2)) for photo in photos]
    held = HeldModel(running.server)
    first = asyncio.ensure_future(stub.Classify(request(photos[0])))
    await held.running(1)
    calls = [asyncio.ensure_future(stub.Classify(request(p, top_k=2))) for p in photos]
    await held.waiting(12)
    held.release()
    await first
    together = [await call for call in calls]
    assert held.batches == [1, 12]
    for a, b in zip(alone, together, strict=True):
        ours, theirs = a.results[0].classification.labels, b.results[0].classification.labels
        assert [label.index for label in ours] == [label.index for label in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-5)


async def test_four_in_a_batch_one_cancelled_three_answered(running: Running, stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(4)]
    held = HeldModel(running.server)
    first = stub.Classify(request(jpeg()))
    await held.running(1)
    calls = [stub.Classify(request(photo)) for photo in photos]
    await held.waiting(4)
    calls[1].cancel()
    await held.waiting(3)
    held.release()
    await first
    for i in (0, 2, 3):
        check((await calls[i]).results[0], photos[i])
    assert calls[1].cancelled()
    assert held.batches == [1, 3]


async def test_a_caller_that_leaves_a_running_batch_harms_nobody(running: Running, stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(4)]
    held = HeldModel(running.server)
    whole = stub.Classify(request(*photos))
    await held.running(1)
    calls = [stub.Classify(request(photo)) for photo in photos]
    await held.waiting(4 + 4 - held.batches[0])
    whole.cancel()
    await held.waiting(4)
    held.release()
    for call, photo in zip(calls, photos, strict=True):
        check((await call).results[0], photo)


CASES = {
    "unknown model": (request(jpeg(), model="cars"), Code.NOT_FOUND, "models here: pets"),
    "no model": (request(jpeg(), model=""), Code.NOT_FOUND, "models here: pets"),
    "unknown version": (request(jpeg(), version="7"), Code.NOT_FOUND, "versions: 1"),
    "unknown alias": (request(jpeg(), version="stable"), Code.NOT_FOUND, "aliases: none"),
    "odd version": (request(jpeg(), version="²"), Code.NOT_FOUND, "versions: 1"),
    "no photos": (request(), Code.INVALID_ARGUMENT, "no photos"),
    "too many": (request(*[b"x"] * 65), Code.INVALID_ARGUMENT, "65 photos; at most 64"),
    "empty bytes": (request(b""), Code.INVALID_ARGUMENT, "empty"),
    "not an image": (request(b"hello" * 99), Code.INVALID_ARGUMENT, "not an image"),
    "truncated": (request(jpeg()[:-300]), Code.INVALID_ARGUMENT, "truncated"),
    "wrong format": (
        request(encode(drawing(), "TIFF")),
        Code.INVALID_ARGUMENT,
        "not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP",
    ),
    "bomb": (request(bomb(20_000, 20_000)), Code.INVALID_ARGUMENT, "20000 x 20000 pixels"),
    "photo too large": (
        request(b"x" * (20 * MIB + 1)),
        Code.INVALID_ARGUMENT,
        "20,971,521 bytes; at most 20,971,520",
    ),
    "message too large": (
        request(*[b"x" * (16 * MIB)] * 4),
        Code.INVALID_ARGUMENT,
        "the message has 67,108,",
    ),
    "message far too large": (
        request(*[b"x" * (17 * MIB)] * 4),
        Code.RESOURCE_EXHAUSTED,
        "larger than max",
    ),
    "top_k too large": (request(jpeg(), top_k=3), Code.INVALID_ARGUMENT, "top_k must be 0 to 2"),
    "top_k negative": (request(jpeg(), top_k=-1), Code.INVALID_ARGUMENT, "top_k must be 0 to 2"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_call_has_its_own_status(stub, case: str) -> None:
    message, code, words = CASES[case]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(message)
    assert caught.value.code() is code
    assert words in caught.value.details()
    photo = jpeg()
    check((await stub.Classify(request(photo))).results[0], photo)


async def test_a_deadline_that_passes_in_the_queue(running: Running, stub) -> None:
    held = HeldModel(running.server)
    first = stub.Classify(request(jpeg()))
    await held.running(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(request(jpeg()), timeout=0.2)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await held.waiting(0)  # it has left the queue
    held.release()
    await first
    assert held.batches == [1]


async def test_a_deadline_that_passes_while_decoding(models: Path) -> None:
    photos = [slow_png()] * 12
    async with (
        running_server(models, decode_threads=1) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(request(*photos), timeout=0.15)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        photo = jpeg()
        check((await stub.Classify(request(photo))).results[0], photo)


async def test_one_bad_photo_among_good_ones_fails_alone(stub) -> None:
    good = [jpeg(seed=seed) for seed in range(6)]
    bad = [b"", b"junk", jpeg()[:-300], bomb(9000, 9000), encode(drawing(), "TIFF")]
    photos = [photo for pair in zip(good, bad, strict=False) for photo in pair] + [good[-1]]
    response = await stub.Classify(request(*photos))
    assert len(response.results) == 11
    for i, photo in enumerate(photos):
        if i % 2 == 0:
            check(response.results[i], photo)
        else:
            assert response.results[i].WhichOneof("outcome") == "error"
    messages = [response.results[i].error.message for i in (1, 3, 5, 7, 9)]
    assert len(set(messages)) == 5 and all(messages)


async def test_a_call_of_bad_photos_alone_has_an_error_for_each(stub) -> None:
    response = await stub.Classify(request(b"", b"junk"))
    assert [r.WhichOneof("outcome") for r in response.results] == ["error", "error"]


async def test_a_full_queue_is_resource_exhausted(models: Path) -> None:
    async with (
        running_server(models, max_queue=4, max_photos=4, max_batch=2) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        held = HeldModel(running.server)
        calls = [stub.Classify(request(jpeg(seed=seed))) for seed in range(4)]
        await held.admitted(4)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(request(jpeg()))
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            assert "try again later" in caught.value.details()
        held.release()
        for seed, call in enumerate(calls):
            check((await call).results[0], jpeg(seed=seed))
        check((await stub.Classify(request(jpeg()))).results[0], jpeg())


async def test_an_unexpected_error_is_logged_whole_and_leaves_bare(
    running: Running, stub, caplog: pytest.LogCaptureFixture
) -> None:
    served = running.server.catalogue.models["pets"].versions[1]

    def broken(images: np.ndarray, alone: bool) -> tuple[np.ndarray, ...]:
        raise RuntimeError("secret path /srv/models")

    sound = served.batcher._run_model
    served.batcher._run_model = broken
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(request(jpeg()))
    assert caught.value.code() is Code.INTERNAL
    assert caught.value.details() == "internal error of the server"
    assert "secret path" in caplog.text and "Traceback" in caplog.text
    assert [r.levelno for r in caplog.records if r.name == "serving.status"] == [logging.ERROR]
    served.batcher._run_model = sound
    check((await stub.Classify(request(jpeg()))).results[0], jpeg())


async def test_cancelled_calls_by_the_hundred_leave_the_server_sound(stub) -> None:
    photos = [jpeg(seed=seed) for seed in range(8)]
    calls = [stub.Classify(request(photos[i % 8])) for i in range(200)]
    for i, call in enumerate(calls):
        if i % 2:
            asyncio.get_running_loop().call_later(i * 0.0005, call.cancel)
    answered = 0
    for i, call in enumerate(calls):
        try:
            check((await call).results[0], photos[i % 8])
            answered += 1
        except asyncio.CancelledError:
            assert i % 2
    assert answered >= 100


TRUST = {
    "photos": 400,
    "confidence": 0.95,
    "thresholds": [
        {"precision": "fp32", "accuracy": 0.9, "probability": 0.5, "answered": 1.0},
        {"precision": "fp32", "accuracy": 0.95, "probability": 0.75, "answered": 0.8},
        {"precision": "int8", "accuracy": 0.99, "probability": 0.8, "answered": 0.7},
    ],
}


async def test_list_and_get_model(tmp_path: Path) -> None:
    summary = (
        b'{"photos": 64, "clean_accuracy": 1.0, "robust_accuracy": [{"norm": "linf", "epsilon": '
        b'0.00390625, "accuracy": 0.03125}], "corruption_accuracy": 0.75, "created": "2026-01-02"}'
    )
    build_version(tmp_path, "pets")
    build_version(tmp_path, "pets", seed=1)
    build_version(tmp_path, "birds", ["a", "b", "c"], size=64)
    repository = Repository(tmp_path)
    repository.promote("pets", 1)
    with repository.staging("pets") as folder:
        (folder / "summary.json").write_bytes(summary)
        (folder / "trust.json").write_text(json.dumps(TRUST))
        repository.attach_analysis("pets", 1, folder)
    async with (
        running_server(tmp_path) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        listed = await stub.ListModels(pb.ListModelsRequest())
        assert [(m.name, list(m.versions), m.default_version) for m in listed.models] == [
            ("birds", [1], 1),
            ("pets", [1, 2], 1),
        ]
        assert dict(listed.models[1].aliases) == {"stable": 1}
        model = await stub.GetModel(pb.GetModelRequest(model="pets", version="stable"))
        manifest = repository.manifest("pets", 1)
        measured = manifest.variants["fp32"].metrics
        assert (model.version, list(model.labels), model.input_size) == (1, ["cat", "dog"], 32)
        assert model.precision == "fp32" and model.metrics.accuracy == pytest.approx(0.9)
        assert dict(model.digests) == {f: e.sha256 for f, e in manifest.files.items()}
        assert model.robustness.photos == 64
        assert model.robustness.robust_accuracy[0].accuracy == 0.03125
        async with AsyncClient(running.address) as client:
            described = await client.get_model("pets", "stable")
        assert (described.model, described.version) == ("pets", 1)
        findings = repository.findings("pets", 1)
        assert findings is not None and described.robustness == findings.robustness
        # Of the file that is served, and not of that of int8.
        assert described.trust is not None and described.trust.photos == 400
        said = [(t.accuracy, t.probability, t.answered) for t in described.trust.thresholds]
        assert said == [pytest.approx((0.9, 0.5, 1.0)), pytest.approx((0.95, 0.75, 0.8))]
        asked = [described.threshold_for(accuracy) for accuracy in (0.5, 0.9, 0.91, 0.95, 0.951)]
        assert asked == [0.5, 0.5, 0.75, 0.75, None]
        assert described.labels == manifest.labels and described.photos == measured.photos
        assert (described.backbone, described.created) == (manifest.backbone, manifest.created)
        said = (described.accuracy_low, described.accuracy, described.accuracy_high)
        assert (*said, described.expected_calibration_error) == pytest.approx(
            (measured.accuracy_low, measured.accuracy, measured.accuracy_high, measured.ece)
        )
        newest = await stub.GetModel(pb.GetModelRequest(model="pets", version="2"))
        assert newest.version == 2
        assert not newest.HasField("robustness") and not newest.HasField("trust")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModel(pb.GetModelRequest(model="pets", version="3"))
        assert caught.value.code() is Code.NOT_FOUND
        for version, answered in (("", 1), ("stable", 1), ("1", 1), ("2", 2)):
            response = await stub.Classify(request(jpeg(), version=version))
            assert (response.model, response.version) == ("pets", answered)
        assert (await stub.Classify(request(jpeg(), model="birds", top_k=3))).version == 1


async def test_exact_pixels_reach_the_model(running: Running, stub) -> None:
    """An S x S PNG is seen as it is: what an adversarial picture depends on."""
    picture = noise(32, seed=4)
    response = await stub.Classify(request(encode(picture, "PNG"), top_k=2))
    probabilities = softmax(logits_of(np.asarray(picture)[None]))[0]
    for label in response.results[0].classification.labels:
        assert label.probability == pytest.approx(probabilities[label.index], abs=1e-5)


def test_every_error_of_the_core_has_a_status() -> None:
    from serving import errors

    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PawprintError)
    }
    assert STATUS.keys() == kinds - {errors.PawprintError}


async def test_calls_of_low_priority_wait_for_the_others(running: Running, stub) -> None:
    held = HeldModel(running.server)
    first = asyncio.ensure_future(stub.Classify(request(jpeg())))
    await held.running(1)
    photos = [jpeg(seed=seed) for seed in range(1, 17)]
    same = [jpeg()] * 16
    low = asyncio.ensure_future(stub.Classify(request(*same, priority=pb.PRIORITY_LOW)))
    await held.waiting(16)
    high = asyncio.ensure_future(stub.Classify(request(*photos)))
    await held.waiting(32)
    held.release()
    await first
    answers = [await high, await low]
    next_batch = [not np.array_equal(one, held.pictures[0][0]) for one in held.pictures[1]]
    assert sum(next_batch) == 15 and len(next_batch) == LOW_EVERY  # one of 16 is of low priority
    for answer, sent in zip(answers, (photos, same), strict=True):
        for result, photo in zip(answer.results, sent, strict=True):
            check(result, photo)


async def test_a_refusal_says_when_to_try_again(models: Path) -> None:
    async with (
        running_server(models, max_queue=16, max_photos=16) as running,
        AsyncClient(running.address) as client,
    ):
        held = HeldModel(running.server)
        calls = [
            asyncio.ensure_future(client.classify([jpeg()] * 8, model="pets")) for _ in range(2)
        ]
        await held.admitted(16)
        with pytest.raises(Overloaded, match="the queue is full") as caught:
            await client.classify([jpeg()], model="pets")
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 0.05
        held.release()
        for call in calls:
            assert len((await call).results) == 8


async def test_a_version_that_can_tells_photos_unlike_those_it_learnt_from(tmp_path: Path) -> None:
    for familiar in (False, True):
        build_version(tmp_path, "pets", familiar=familiar)
    Repository(tmp_path).promote("pets", 1, "old")
    photos = [encode(noise(32), "PNG"), b"junk", black()]
    known = familiarity_of(np.asarray(noise(32))[None])[0, 0]
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        before = await client.classify(photos, model="pets", version=1)
        assert [(r.familiarity, r.unfamiliar) for r in before.results] == [(None, False)] * 3
        assert (await client.get_model("pets", 1)).familiarity is None

        ordinary, bad, strange = (await client.classify(photos, model="pets")).results
        assert ordinary.familiarity == pytest.approx(known) and not ordinary.unfamiliar
        assert (bad.familiarity, bad.unfamiliar) == (None, False) and bad.error
        assert strange.familiarity == pytest.approx(0.01) and strange.unfamiliar
        assert strange.label.probability > 0.5  # however probable
        told = {a.index: a.result async for a in client.stream(photos, model="pets")}
        assert [told[0], told[2]] == [ordinary, strange]

        described = (await client.get_model("pets")).familiarity
        assert described is not None and described.photos == FAMILIARITY_OF_TINY.photos
        assert described.threshold == pytest.approx(FAMILIARITY_OF_TINY.threshold)
        assert described.unfamiliar == {"fp32": 0.0}


async def test_a_share_of_unfamiliar_photos_is_told_of_the_precision_that_is_served(
    tmp_path: Path,
) -> None:
    model = tiny_model(familiar=True).SerializeToString()
    build_version(tmp_path, "pets", familiar=True, extra_files={"model.int8.onnx": model})
    async with (
        running_server(tmp_path, precision="int8") as running,
        AsyncClient(running.address) as client,
    ):
        described = await client.get_model("pets")
    assert described.precision == "int8" and described.familiarity is not None
    assert described.familiarity.unfamiliar == {}  # it was measured of fp32 alone

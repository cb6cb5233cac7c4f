"""Canary and shadow: whose calls go where, and what is counted."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import pytest

from protos.inference import grpc_service_pb2 as pb
from protos.inference import grpc_service_pb2_grpc
from serving.client import AsyncClient, Client
from serving.errors import InvalidRequest
from serving.repository import Repository
from serving.settings import ServerSettings
from serving.splits import Split, falls_in, read_splits
from tests.conftest import Running, running_server
from tests.photos import jpeg
from tests.serving.held_model import until
from tests.serving.test_inference_protocol import PIXELS, raw_pixels
from tests.tiny import build_version


@pytest.fixture
def two(models: Path) -> Path:
    """pets/1, which is stable, and pets/2, which is canary and answers otherwise."""
    build_version(models, "pets", seed=1)
    Repository(models).promote("pets", 1)
    Repository(models).promote("pets", 2, "canary")
    return models


def test_the_share_of_keys_is_the_share_asked_for() -> None:
    keys = [f"user-{number}" for number in range(20_000)]
    small = {key for key in keys if falls_in(0.1, "pets", key)}
    large = {key for key in keys if falls_in(0.3, "pets", key)}
    assert len(small) / len(keys) == pytest.approx(0.1, abs=0.01)
    assert len(large) / len(keys) == pytest.approx(0.3, abs=0.01)
    assert small < large  # raising the share takes nobody back
    assert small != {key for key in keys if falls_in(0.1, "birds", key)}
    for share, expected in ((0.0, set()), (1.0, set(keys))):
        assert {key for key in keys if falls_in(share, "pets", key)} == expected


def test_splits_are_read() -> None:
    assert read_splits("pets=canary:0.1, birds=7:1", "canary") == {
        "pets": Split(reference="canary", share=0.1),
        "birds": Split(reference="7", share=1.0),
    }
    assert read_splits("", "canary") == {}


@pytest.mark.parametrize(
    "text",
    [
        "pets",
        "pets=canary",
        "pets=canary:2",
        "pets=canary:-1",
        "=canary:1",
        "pets=:1",
        "a=b:.",
        ",",
    ],
)
def test_a_wrong_split_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="canary must be MODEL=VERSION:SHARE"):
        ServerSettings(canary=text)


def test_a_second_canary_of_a_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="names pets twice: a model has one canary"):
        ServerSettings(canary="pets=2:0.1,birds=1:0.1,pets=3:0.1")


def test_a_shadow_of_the_canary_that_gets_all_calls_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing could be compared"):
        ServerSettings(canary="pets=2:1", shadow="pets=2:1")
    ServerSettings(canary="pets=2:0", shadow="pets=2:1")  # as when a canary is taken back


async def test_a_split_to_what_calls_get_already_is_told(
    two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"control": "none", "canary": "pets=canary:0.1", "shadow": "pets=1:1"}
    canary = "canary of pets: canary is what all calls get already"
    shadow = "shadow of pets: 1 answers the calls itself, and gets no copies of them"
    async with running_server(two, shadow="pets=1:1") as running:
        assert running.server.control.remarks() == [shadow]
        assert caplog.text.count(shadow) == 1
    async with running_server(two, **settings) as running:
        assert running.server.control.remarks() == []  # it gets the canary's calls
        Repository(two).promote("pets", 2)
        await running.server.control.rescan()
        await running.server.control.rescan()
        assert running.server.control.remarks() == [canary]
        assert running.server.control.problems() == []  # nothing is missing
        assert caplog.text.count(canary) == 1


@pytest.mark.parametrize("kind", ["canary", "shadow"])
async def test_a_split_to_other_labels_is_told(tmp_path: Path, kind: str) -> None:
    for labels in (["cat", "dog"], ["cat", "hound"]):
        build_version(tmp_path, "pets", labels)
    Repository(tmp_path).promote("pets", 1)
    async with running_server(tmp_path, **{kind: "pets=2:0.1"}) as running:
        assert running.server.control.remarks() == [
            f"{kind} of pets: 2 has other labels than 1, which calls get: without dog; with hound"
        ]
        assert running.server.control.problems() == []  # it may be meant so


@pytest.mark.parametrize(
    ("kind", "more", "less"),
    [
        (
            "canary",
            [
                "has its labels in another order than 1, which calls get: an index is that of "
                "another label",
                "takes another size than 1, which calls get: 48 x 48; pixels of 32 x 32 are "
                "refused",
                "has an output more than 1, which calls get: familiarity",
            ],
            ["lacks an output of 2, which calls get: familiarity"],
        ),
        (
            "shadow",
            [
                "takes another size than 1, which calls get: 48 x 48; pixels of 32 x 32 can't be "
                "copied"
            ],
            [],
        ),
    ],
)
async def test_a_split_to_other_inputs_or_outputs_is_told(
    models: Path, kind: str, more: list[str], less: list[str]
) -> None:
    build_version(models, "pets", ("dog", "cat"), 48, familiar=True)
    build_version(models, "pets", ("dog", "cat"), 48)
    Repository(models).promote("pets", 1)
    async with running_server(models, **{kind: "pets=2:0.1"}) as running:
        control = running.server.control
        assert control.remarks() == [f"{kind} of pets: 2 {how}" for how in more]
        assert control.problems() == []
    Repository(models).promote("pets", 2)
    async with running_server(models, **{kind: "pets=3:0.1"}) as running:
        assert running.server.control.remarks() == [f"{kind} of pets: 3 {how}" for how in less]


async def test_a_canary_answers_its_share_by_key(two: Path) -> None:
    async with (
        running_server(two, canary="pets=canary:0.3") as running,
        AsyncClient(running.address) as client,
    ):

        async def version(key: str, reference: str = "") -> int:
            response = await client.classify(
                [jpeg()], model="pets", version=reference, routing_key=key
            )
            return response.version

        keys = [f"user-{number}" for number in range(60)]
        first = [await version(key) for key in keys]
        assert first == [2 if falls_in(0.3, "pets", key) else 1 for key in keys]
        assert set(first) == {1, 2}
        assert first == [await version(key) for key in keys]  # sticky
        assert {await version(key, "stable") for key in keys} == {1}  # asked for by name
        without = [await version("") for _ in range(60)]
        assert set(without) == {1, 2}


async def test_what_describes_a_model_describes_its_default(models: Path) -> None:
    """Never the canary, which has a label more and answers every call that names no version."""
    build_version(models, "pets", ("cat", "dog", "owl"))
    Repository(models).promote("pets", 1)
    async with (
        running_server(models, canary="pets=2:1") as running,
        AsyncClient(running.address) as client,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await client.classify([jpeg()], model="pets")).version == 2
        assert (await client.get_model("pets")).version == 1
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="pets"))
        assert [output.shape for output in metadata.outputs] == [[-1, 2], [-1, 2]]
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="pets"))).config
        assert [output.dims for output in config.output] == [[2], [2]]


@pytest.mark.parametrize("version", ["canary", "0", "9" * 5000])
async def test_a_canary_that_is_not_there_gets_nothing(models: Path, version: str) -> None:
    async with (
        running_server(models, canary=f"pets={version}:1") as running,
        AsyncClient(running.address) as client,
    ):
        assert (await client.classify([jpeg()], model="pets")).version == 1


async def test_a_canary_by_number_is_loaded_whatever_the_policy(two: Path) -> None:
    build_version(two, "pets", seed=3)
    async with (
        running_server(two, versions="alias", canary="pets=3:1") as running,
        AsyncClient(running.address) as client,
    ):
        assert (await client.classify([jpeg()], model="pets")).version == 3


async def counted(running: Running, photos: int) -> dict[str, int]:
    counts = running.server._classifier.shadowing.counts
    await until(lambda: sum(counts.values()) == photos)
    assert {key[:3] for key in counts} == {("pets", 1, 2)}
    return {key[3]: value for key, value in counts.items()}


async def test_shadow_answers_are_compared_and_only_counted(two: Path) -> None:
    photos = [jpeg(seed=seed) for seed in range(40)]
    async with (
        running_server(two, shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        await client.classify([b"no photo", b"neither"], model="pets")  # nothing to agree on
        responses = [await client.classify([photos[0], b"no photo"], model="pets")]
        responses += [await client.classify([photo], model="pets") for photo in photos[1:]]
        assert {response.version for response in responses} == {1}
        counts = await counted(running, 40)
        labels = [response.results[0].labels[0].name for response in responses]
        others = [
            (await client.classify([photo], model="pets", version=2)).results[0].labels[0].name
            for photo in photos
        ]
        agreed = sum(one == other for one, other in zip(labels, others, strict=True))
        assert counts == {k: v for k, v in (("agreed", agreed), ("differed", 40 - agreed)) if v}
        assert await counted(running, 40) == counts  # calls to the shadow itself are not copied


async def test_a_stream_has_the_version_of_its_key(two: Path) -> None:
    photos = [jpeg()] * 4
    async with running_server(two, canary="pets=canary:0.5") as running:
        with Client(running.address) as blocking:
            for client in (AsyncClient(running.address), AsyncClient(running.address, max_batch=2)):
                async with client:
                    seen = set()
                    for key in map(str, range(8)):
                        call = await client.classify(photos[:1], model="pets", routing_key=key)
                        stream = client.stream(photos, model="pets", routing_key=key)
                        assert {a.response.version async for a in stream} == {call.version}
                        seen.add(call.version)
                    assert seen == {1, 2}
            answers = await asyncio.to_thread(
                lambda: [*blocking.stream(photos, model="pets", routing_key=key)]
            )
            assert {answer.response.version for answer in answers} == {call.version}


async def test_a_shadow_that_is_the_canary_gets_copies_of_all_other_calls(two: Path) -> None:
    async with (
        running_server(two, canary="pets=canary:0.5", shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        calls = [
            await client.classify([jpeg()], model="pets", routing_key=f"user-{i}")
            for i in range(20)
        ]
        answered = Counter(call.version for call in calls)
        assert answered[2] > 0 and sum((await counted(running, answered[1])).values()) < 20


async def test_a_shadow_gets_its_share_of_the_calls(two: Path) -> None:
    async with (
        running_server(two, shadow="pets=canary:0.5") as running,
        AsyncClient(running.address) as client,
    ):
        for _ in range(40):
            await client.classify([jpeg()], model="pets")
        shadowing = running.server._classifier.shadowing
        await until(lambda: not shadowing._copies)
        assert 0 < sum(shadowing.counts.values()) < 40


async def test_a_slow_or_failing_shadow_harms_nobody(two: Path) -> None:
    async with (
        running_server(two, shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        shadow = running.server.catalogue.models["pets"].versions[2]

        def failing(images: object) -> None:
            raise RuntimeError("the shadow is broken")

        shadow.batcher._run_model = failing
        for _ in range(5):
            assert (await client.classify([jpeg()], model="pets")).version == 1
        assert await counted(running, 5) == {"failed": 5}


async def test_pixels_are_copied_to_a_shadow_that_takes_such(two: Path) -> None:
    async with (
        running_server(two, shadow="pets=canary:1") as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(raw_pixels())
        assert set(await counted(running, len(PIXELS))) <= {"agreed", "differed"}


async def test_and_harm_none_of_its_own_calls_where_it_takes_others(models: Path) -> None:
    build_version(models, "pets", size=48)
    Repository(models).promote("pets", 1)
    async with (
        running_server(models, shadow="pets=2:1", max_delay_ms=10_000) as running,
        AsyncClient(running.address) as client,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        shadow = running.server.catalogue.models["pets"].versions[2]
        with shadow.batcher.admit(1):  # a photo that does not come: all others wait for it
            own = asyncio.ensure_future(client.classify([jpeg()], model="pets", version=2))
            await until(lambda: shadow.batcher.waiting == 1)
            await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(raw_pixels())
            assert await counted(running, len(PIXELS)) == {"failed": len(PIXELS)}
        assert (await own).results[0].labels


async def test_a_copy_for_which_the_shadow_has_no_room_is_no_failure_of_it(two: Path) -> None:
    async with (
        running_server(two, shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        shadow = running.server.catalogue.models["pets"].versions[2]
        with shadow.batcher.admit(running.server._settings.max_queue):
            assert (await client.classify([jpeg()], model="pets")).version == 1
            assert await counted(running, 1) == {"skipped": 1}


async def test_no_more_copies_are_kept_than_can_be_asked(two: Path) -> None:
    async with (
        running_server(two, shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        shadow = running.server.catalogue.models["pets"].versions[2]
        served = running.server.catalogue.models["pets"].versions[1]
        shadow.batcher._settings = shadow.batcher._settings.__class__(
            max_batch=64, max_delay_s=10, max_queue=256
        )
        with shadow.batcher.admit(1):  # a photo that does not come: the shadow waits for it
            for _ in range(30):
                assert (await client.classify([jpeg()], model="pets")).version == 1
            counts = running.server._classifier.shadowing.counts
            assert counts["pets", 1, 2, "skipped"] == 14
        assert (await counted(running, 30))["skipped"] == 14
        assert served.batcher.admitted == 0


async def test_the_counts_of_versions_that_were_let_go_are_forgotten_in_the_end(two: Path) -> None:
    repository = Repository(two)
    async with (
        running_server(two, control="none", shadow="pets=canary:1") as running,
        AsyncClient(running.address) as client,
    ):
        counts = running.server._classifier.shadowing.counts
        await client.classify([jpeg()], model="pets")
        await until(lambda: bool(counts))
        (copied,) = counts.items()
        build_version(two, "birds")
        await running.server.control.rescan()
        assert [*counts.items()] == [copied]  # nothing of theirs has changed
        for version in (3, 4):
            build_version(two, "pets", seed=2)
            repository.promote("pets", version, "canary")
            await running.server.control.rescan()
            await client.classify([jpeg()], model="pets")
            await until(lambda: len(counts) == 2)
            assert {key[:3] for key in counts} == {("pets", 1, v) for v in (version - 1, version)}
